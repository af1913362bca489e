"""The pages that are made from the code are up to date, and complete."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from service.settings import Settings

ROOT = Path(__file__).parents[1]
SOURCES = [*(ROOT / "service").rglob("*.py"), *(ROOT / "model").rglob("*.py")]


@pytest.fixture(scope="module")
def made() -> ModuleType:
    """The module docs/make.py."""
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "docs" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_up_to_date(made: ModuleType) -> None:
    for path, text in made.pages().items():
        assert path.read_text(encoding="utf-8") == text, "run: make docs"


def test_every_setting_has_a_row(made: ModuleType) -> None:
    page = made.configuration_page()
    for name in Settings.model_fields:
        assert page.count(f"| `FRCNN_{name.upper()}` |") == 1
    assert "| `--max-batch-size` | `FRCNN_MAX_BATCH_SIZE` | `auto` | integer, 1 to 256 or `auto` |" in page
    assert "--api-keys`" not in page  # a secret is no option


def test_every_code_that_the_service_gives_has_a_row(made: ModuleType) -> None:
    codes = {code for _, code, _, _ in made.error_rows()}
    written = {
        code
        for path in SOURCES
        for code in re.findall(r'\bcode(?:: \w+)? ?= ?"([a-z-]+)"', path.read_text(encoding="utf-8"))
    }
    assert "internal" in written
    assert written <= codes
    assert {"queue-full", "no-such-path", "deadline-passed"} <= codes


def test_codes_are_unique_and_rejections_for_load_can_be_retried(made: ModuleType) -> None:
    rows = made.error_rows()
    assert len({code for _, code, _, _ in rows}) == len(rows)
    assert {retry for status, _, _, retry in rows if status in {429, 503}} == {"after a pause (`Retry-After`)"}


def test_a_class_that_the_tree_does_not_show_is_noticed(made: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made.errors, "__doc__", "+- QueueFullError  429  too much")
    with pytest.raises(ValueError, match="differ"):
        made.error_rows()
