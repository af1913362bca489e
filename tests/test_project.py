"""The project's own files agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
REQUIREMENTS = sorted((ROOT / "docker").glob("requirements*.txt"))


def pins(path: Path) -> dict[str, set[str]]:
    """Name to the pinned versions: several, where they depend on the Python."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9_.-]+)==([^\s;\\]+)", path.read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def test_the_image_installs_what_was_tested() -> None:
    tested = pins(ROOT / "constraints.txt")
    for path in REQUIREMENTS:
        shipped = pins(path)
        assert {"torch", "fastapi", "setuptools"} <= set(shipped)
        assert {name: tested.get(name) for name in shipped} == shipped
        assert "pytest" not in shipped


def test_every_pin_has_a_hash_and_no_address() -> None:
    for path in (ROOT / "constraints.txt", *REQUIREMENTS):
        text = path.read_text()
        entries = re.split(r"\n(?=[a-z])", text)
        assert all("--hash=sha256:" in entry for entry in entries)
        assert "://" not in text


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_continuous_integration_tries_every_python_that_is_promised() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    tried = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    promised = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project()["project"]["requires-python"])
    assert promised is not None
    lowest, beyond = promised.groups()
    assert tried == [f"3.{minor}" for minor in range(int(lowest), int(beyond))]


def test_continuous_integration_builds_the_image_once() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (step,) = [step for step in workflow["jobs"]["test"]["steps"] if step.get("run") == ".ci/run"]
    builds = re.fullmatch(r"\$\{\{ matrix\.python != '(3\.\d+)' && '1' \|\| '' \}\}", step["env"]["SKIP_DOCKER"])
    assert builds is not None
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"].count(builds[1]) == 1
    assert "${SKIP_DOCKER:-}" in (ROOT / ".ci" / "run").read_text()


def test_users_see_our_types() -> None:
    shipped = project()["tool"]["setuptools"]["package-data"]
    for package in ("model", "service"):
        assert "py.typed" in shipped[package]
        assert (ROOT / package / "py.typed").is_file()


def test_hooks_and_make_run_the_same_ruff() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [entry["repo"] for entry in hooks] == ["local"]  # nothing is fetched
    (folder,) = re.findall(r"^LINT := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    ruff = f"{folder}/bin/ruff"
    entries = [hook["entry"] for hook in hooks[0]["hooks"]]
    assert [entry.split()[:2] for entry in entries if "ruff" in entry] == [[ruff, "check"], [ruff, "format"]]


def test_every_target_says_how_long_it_takes() -> None:
    helps = re.findall(r"^([a-z-]+):.*## (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(helps) > 10
    untimed = {name for name, text in helps if not re.search(r"\b(s|min|minutes)\b", text)}
    assert untimed == {"help"}


def test_targets_that_continuous_integration_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", (ROOT / ".ci" / "run").read_text())) <= targets
