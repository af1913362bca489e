"""The project's own files agree with each other."""

from __future__ import annotations

import re
from pathlib import Path

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


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_what_the_comparison_claims_is_held_by_tests_that_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "comparison.md").read_text())
    assert len(named) > 10
    assert [f"{path}::{name}" for path, name in named if f"def {name}(" not in (ROOT / path).read_text()] == []


def test_tests_that_the_model_page_names_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", (ROOT / "docs" / "model.md").read_text())
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []
