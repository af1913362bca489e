"""The code that the page offers does what the page did."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import Visit, picture_file

LOOKED_AT = ("desktop-light",)


def run(language: str, visit: Visit, folder: Path) -> str:
    """What the code of this tab prints, run in a folder."""
    visit.page.locator(f"input[value={language}]").check(force=True)
    code = visit.page.text_content("#code")
    command = {
        "curl": ["bash", "-c", code],
        "python": [sys.executable, "-c", code],
        "javascript": [node(), "--input-type=module", "-e", code],
    }[language]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def node() -> str:
    """The Node that runs Playwright."""
    playwright = pytest.importorskip("playwright")
    return str(Path(playwright.__file__).parent / "driver" / "node")


def languages() -> list[str]:
    return ["python", "javascript", *(["curl"] if shutil.which("curl") else [])]


@pytest.mark.parametrize("name", ["a picture.png", "it's; echo $(id) `id` \"&.png"])
def test_the_code_does_what_the_page_did(name: str, visit: Visit, tmp_path: Path) -> None:
    data = picture_file()
    (tmp_path / name).write_bytes(data)
    visit.pick(name, data)
    visit.until_shown()
    visit.page.locator("#threshold").fill("0.6")
    visit.page.locator(".chip", has_text="dog").click()
    visit.page.locator("input[value=json]").check(force=True)
    shown = json.loads(visit.page.text_content("#code"))
    assert shown["label_names"] == ["cat", "cat"]
    for language in languages():
        printed = run(language, visit, tmp_path)
        if language == "curl":
            assert json.loads(printed) == shown
        else:
            assert [line.split()[0] for line in printed.splitlines()] == ["cat", "cat"]


def test_the_code_for_no_class_asks_for_none(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(picture_file())
    visit.pick("mine.png", picture_file())
    visit.until_shown()
    visit.page.click("#no-classes")
    for language in languages():
        printed = run(language, visit, tmp_path)
        assert json.loads(printed)["boxes"] == [] if language == "curl" else printed == ""
    visit.page.locator(".chip", has_text="cat").click()
    visit.page.locator("input[value=curl]").check(force=True)
    assert "labels=cat'" in visit.page.text_content("#code")
    assert run("javascript", visit, tmp_path).count("cat ") == 2


def test_the_sample_s_code_fetches_the_sample(visit: Visit, tmp_path: Path) -> None:
    visit.page.click("#sample")
    visit.until_shown()
    for language in ("python", "javascript"):
        assert len(run(language, visit, tmp_path).splitlines()) == 4
