"""What the documents name exists: files, headings, commands, options, settings, targets, tests, names in the code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from service.cli.app import app
from service.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *PAGES,
    ROOT / "benchmarks" / "README.md",
    ROOT / "model/bundled/MODEL_CARD.md",
]
WORDS = "api architecture clients configuration deployment model operations scaling training"
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))

SHELL_ENDS = {"&&", "||", "|", ">", ";", "&"}
# Names of Home Assistant, Kubernetes, nginx and TorchServe.
FOREIGN = {
    "ContainerCreating",
    "deepstack_object",
    "job_queue_size",
    "max_batch_delay",
    "real_ip_header",
    "set_real_ip_from",
}


def lines_of_code(text: str) -> Iterator[str]:
    """The lines of fenced and of indented blocks, those that a backslash breaks joined, without comments."""
    fenced, begun = False, ""
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            begun += line.strip()
            if begun.endswith("\\"):
                begun = begun[:-1]
                continue
            yield re.sub(r"(^|\s)#.*", "", begun)
            begun = ""


def prose(text: str) -> str:
    """The text without blocks of code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^    .*$", "", text, flags=re.MULTILINE)


def in_code_font(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(text))


@cache
def headings(path: Path) -> set[str]:
    """The anchors of a document, by GitHub's rule."""
    found: dict[str, int] = {}
    anchors = set()
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        anchors.add(f"{anchor}-{found[anchor]}" if anchor in found else anchor)
        found[anchor] = found.get(anchor, 0) + 1
    return anchors


def test_there_are_nine_pages() -> None:
    assert [path.stem for path in PAGES] == WORDS.split()


@each_document
def test_links_lead_to_files_and_headings(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)", document.read_text(encoding="utf-8")):
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), f"there is no {target}"
        if anchor:
            assert anchor in headings(path), f"{path.name} has no heading #{anchor}"


def commands(text: str) -> Iterator[list[str]]:
    """The words after each `frcnn`, in blocks of code and in code font."""
    for line in [*lines_of_code(text), *in_code_font(text)]:
        for part in re.split(r"(?<!--name )(?<!\.)\bfrcnn (?=[a-z])", line)[1:]:
            words = shlex.split(part.replace("...", " "), comments=True)
            end = next((n for n, word in enumerate(words) if word in SHELL_ENDS), len(words))
            yield [word for word in words[:end] if not word.endswith(":")]


def options_of(command: click.Command) -> set[str]:
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help", "-h"}


def check(words: list[str]) -> None:
    """That a command, its subcommands and its options exist."""
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        name, *words = words
        for one in name.split("|"):
            assert one in command.commands, f"there is no command {one}"
        command = command.commands[name.split("|")[0]]
    given = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert given <= options_of(command), f"{command.name} has no option {given - options_of(command)}"


@each_document
def test_commands_and_their_options_exist(document: Path) -> None:
    for words in commands(document.read_text(encoding="utf-8")):
        try:
            check(words)
        except AssertionError as error:
            raise AssertionError(f"frcnn {shlex.join(words)}: {error}") from None


def test_a_wrong_command_or_option_is_noticed() -> None:
    text = """`frcnn weights list`

    frcnn serve \\
        --port 1 && true --no
    x/frcnn detect a.jpg --json  # --wrong
"""
    found = list(commands(text))
    assert found == [["serve", "--port", "1"], ["detect", "a.jpg", "--json"], ["weights", "list"]]
    for words in found:
        check(words)
    for words in (["serv"], ["weights", "lists"], ["serve", "--ports", "1"]):
        with pytest.raises(AssertionError, match="no"):
            check(words)


@cache
def every_option() -> set[str]:
    """Of all commands, and of what else the documents show."""
    found: set[str] = set()
    pending: list[Any] = [typer.main.get_command(app)]
    while pending:
        command = pending.pop()
        found |= options_of(command)
        pending += getattr(command, "commands", {}).values()
    for path in [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "docker").rglob("*"), *ROOT.glob("docker-compose.yml")]:
        if path.is_file() and path.suffix in {".py", ".yml", ".sh", ""}:
            found |= set(re.findall(r"--[a-z][a-z-]+", path.read_text(encoding="utf-8")))
    return found


# Docker's, that the prose names.
FOREIGN_OPTIONS = {
    "--build-arg",
    "--cap-drop",
    "--env",
    "--force-recreate",
    "--gpus",
    "--read-only",
    "--security-opt",
    "--wait",
}


@each_document
def test_options_in_code_font_exist(document: Path) -> None:
    named = {
        name
        for code in in_code_font(document.read_text(encoding="utf-8"))
        if code.startswith("--")
        for name in re.findall(r"(?<![\w-])--[a-z][a-z-]*", code)
    }
    assert named <= every_option() | FOREIGN_OPTIONS, named - every_option()


@cache
def variables() -> set[str]:
    """`FRCNN_<NAME>` of the settings, and those that compose and the load tester read."""
    found = {f"FRCNN_{name.upper()}" for name in Settings.model_fields} | {"FRCNN_API_KEY"}
    for path in [ROOT / "docker-compose.yml", *(ROOT / "docker").glob("compose*.yml")]:
        found |= set(re.findall(r"\bFRCNN_[A-Z_]+\b", path.read_text(encoding="utf-8")))
    return found


@each_document
def test_variables_exist(document: Path) -> None:
    named = set(re.findall(r"\bFRCNN_[A-Z_]*[A-Z]\b", document.read_text(encoding="utf-8")))
    assert named <= variables(), named - variables()


@cache
def code() -> str:
    """All the text that names can come from."""
    folders = ("model", "service", "docker", "benchmarks", "tests")
    endings = {".py", ".yml", ".yaml", ".js", ".conf", ".json"}
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in endings]
    files.remove(Path(__file__))
    files += [ROOT / "docker-compose.yml", ROOT / "Dockerfile", ROOT / "Makefile", ROOT / "pyproject.toml"]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


@cache
def names_in_code() -> set[str]:
    return set(re.findall(r"[\w-]+", code())) | set(re.findall(r"\w+", code()))


@each_document
def test_names_in_code_font_are_in_the_code(document: Path) -> None:
    """Settings, metrics and codes have `_` or `-`, classes two capitals."""
    for text in in_code_font(document.read_text(encoding="utf-8")):
        if re.fullmatch(r"[a-z]+([_-][a-z0-9]+)+|([A-Z][a-z0-9]+){2,}", text):
            assert text in names_in_code() | FOREIGN, f"nothing is called {text}"


def test_bold_names_in_the_path_of_a_request_are_files() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    path = text.split("## The path of a request")[1].split("\n## ")[0]
    names = set(re.findall(r"\*\*`([^`]+)`\*\*", path))
    assert len(names) > 10
    assert [name for name in names if not (ROOT / "service" / f"{name}.py").is_file()] == []


def test_the_glossary_names_code() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| (`[^|]+`) \|$", text.split("## Two packages")[0], re.MULTILINE)
    assert len(rows) > 15
    for word, places in rows:
        for name in re.findall(r"`([^`]+)`", places):
            assert (ROOT / name).is_file() or name in names_in_code(), f"{word}: nothing is called {name}"


@each_document
def test_paths_in_code_font_exist(document: Path) -> None:
    for text in in_code_font(document.read_text(encoding="utf-8")):
        for path in re.findall(r"(?:^|\s)((?:model|service|tests|docker|benchmarks|docs)/[\w./-]*\w)", text):
            where, _, _ = path.partition("::")
            assert (ROOT / where).exists() or (document.parent / where).exists(), f"there is no {path}"


@each_document
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = document.read_text(encoding="utf-8")
    for line in [*lines_of_code(text), *in_code_font(text)]:
        for words in re.findall(r"(?:^|[;&]\s*)make ([^;&|#(]+)", line):
            for word in words.split():
                if not re.match(r"[a-z-]+$", word):
                    break
                assert word in targets, f"make {words}: there is no target {word}"


@each_document
def test_tests_that_are_named_exist(document: Path) -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", document.read_text(encoding="utf-8")):
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path} has no {name}"


def test_what_the_comparison_claims_is_held_by_tests() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert len(re.findall(r"`tests/[\w/]+\.py::\w+`", text)) > 10
    assert re.findall(r"`tests/[\w/]+\.py`", (ROOT / "docs" / "model.md").read_text(encoding="utf-8"))
