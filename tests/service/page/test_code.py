"""The code that the page offers does what the page did."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest

LOOKED_AT = ("desktop-light",)


@pytest.mark.parametrize("name", ["a picture.png", "it's; echo $(id) `id` \"&.png"])
def test_the_code_does_what_the_page_did(name: str, visit: Any, picture_file: Any, tmp_path: Any) -> None:
    data = picture_file()
    (tmp_path / name).write_bytes(data)
    visit.pick(name, data)
    visit.until_shown()
    visit.page.locator("#threshold").fill("0.6")
    visit.page.locator(".chip", has_text="dog").click()
    visit.page.locator("input[value=json]").check(force=True)
    shown = json.loads(visit.page.text_content("#code"))
    assert shown["label_names"] == ["cat", "cat"]
    visit.page.locator("input[value=python]").check(force=True)
    script = visit.page.text_content("#code")
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert [line.split()[0] for line in ran.stdout.splitlines()] == ["cat", "cat"], ran.stderr
    if shutil.which("curl"):
        visit.page.locator("input[value=curl]").check(force=True)
        command = ["bash", "-c", visit.page.text_content("#code")]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert json.loads(ran.stdout) == shown, ran.stderr


def test_the_sample_s_code_fetches_the_sample(visit: Any, tmp_path: Any) -> None:
    visit.page.click("#sample")
    visit.until_shown()
    visit.page.locator("input[value=python]").check(force=True)
    script = visit.page.text_content("#code")
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert len(ran.stdout.splitlines()) == 4, ran.stderr
