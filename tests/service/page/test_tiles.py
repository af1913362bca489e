"""A large picture in tiles, from the page."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest

from tests.support.pages import PageDetector, Visit, Visiting, picture_file
from tests.support.servers import live

LOOKED_AT = ("desktop-light", "phone-dark")


@pytest.fixture
def large() -> bytes:
    return picture_file(1800, 700)


def test_a_picture_is_looked_at_in_tiles_when_they_are_chosen(visit: Visit, large: bytes) -> None:
    visit.pick("large.png", large)
    visit.until_shown()
    assert visit.text("#count") == "4 objects"
    visit.page.select_option("#tile", "800")
    visit.until_text("#time-stages", "Tiles, and the whole")
    visit.page.locator("#threshold").fill("0.05")
    assert visit.paths("detect") == 2
    visit.page.locator("input[value=json]").check(force=True)
    shown = json.loads(visit.page.text_content("#code"))
    answer = httpx.post(f"{visit.url}/detect?tile=800", content=large, timeout=60).json()
    assert len(shown["boxes"]) > 6
    np.testing.assert_allclose(shown["boxes"], answer["boxes"])
    assert visit.text("#time-stages").endswith("4")  # three tiles and the whole
    visit.page.locator("input[value=curl]").check(force=True)
    code = visit.page.text_content("#code")
    assert "tile=800" in code
    assert "X-Request-Timeout-Ms: 600000" in code
    visit.page.select_option("#tile", "")
    visit.page.locator("#time-stages", has_text="Tiles, and the whole").wait_for(state="detached")
    assert visit.serious() == []
    assert visit.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_tiles_that_are_too_many_are_told_and_can_be_taken_back(
    visiting: Visiting, detector: PageDetector, large: bytes
) -> None:
    with (
        live(detector, max_tiles=3) as url,
        visiting(url, failed=True) as visit,
    ):
        visit.until_ready()
        visit.page.select_option("#tile", "800")
        visit.pick("large.png", large)
        visit.page.wait_for_selector("main[data-state=failed]")
        assert "1800 x 700 pixels would be 4 pictures" in visit.text("#notice")
        visit.page.select_option("#tile", "")
        visit.until_shown()
        assert visit.page.is_hidden("#notice")


def test_the_code_looks_in_tiles_too(visit: Visit, large: bytes) -> None:
    visit.page.select_option("#tile", "800")
    visit.pick("large.png", large)
    visit.until_shown()
    visit.page.locator("input[value=python]").check(force=True)
    assert '"tile": 800' in visit.page.text_content("#code")
    assert "timeout=600" in visit.page.text_content("#code")
