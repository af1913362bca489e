"""What the page keeps is what the service keeps when it is asked by the code that the page shows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from urllib.parse import parse_qsl

import httpx
import pytest

from tests.support.pages import HOSTILE, PageDetector, Visit, Visiting, picture_file
from tests.support.servers import live

LOOKED_AT = ("desktop-light", "phone-dark")
# The first two cats overlap by a third; a dog covers the first, and the last the third by 9 / 11.
FOUND = [
    ((0.10, 0.1, 0.30, 0.5), 1, 0.9),
    ((0.10, 0.1, 0.30, 0.5), 2, 0.8),
    ((0.20, 0.1, 0.40, 0.5), 1, 0.7),
    ((0.60, 0.1, 0.80, 0.5), 1, 0.6),
    ((0.62, 0.1, 0.82, 0.5), 3, 0.4),
]


@pytest.fixture
def opened(visiting: Visiting) -> Iterator[Visit]:
    """The page of a model whose own overlap is 0.4, with a picture in it, everything shown."""
    detector = PageDetector()
    detector.found = FOUND
    detector.info = dataclasses.replace(detector.info, iou_threshold=0.4)
    with live(detector) as url, visiting(url) as visit:
        visit.until_ready()
        visit.pick("mine.png", picture_file())
        visit.until_shown()
        visit.page.locator("#threshold").fill("0.05")
        visit.page.click(".finer summary")
        yield visit


def set_of(visit: Visit, name: str, value: float) -> None:
    visit.page.locator(".class-threshold", has_text=name).locator("input").fill(str(value))


def check(visit: Visit, names: list[str], picture: bytes) -> dict[str, str]:
    """Both keep these; gives the query that asks for them."""
    visit.page.locator("input[value=json]").check(force=True)
    shown = json.loads(visit.page.text_content("#code"))
    assert shown["label_names"] == names
    visit.page.locator("input[value=curl]").check(force=True)
    query = visit.page.text_content("#code").split("?")[1].split("'")[0]
    answer = httpx.post(f"{visit.url}/detect?{query}", content=picture).json()
    assert {key: shown[key] for key in ("boxes", "scores")} == {key: answer[key] for key in ("boxes", "scores")}
    return dict(parse_qsl(query, keep_blank_values=True))


def test_what_overlaps_a_better_one_can_go(opened: Visit) -> None:
    picture = picture_file()
    assert opened.page.get_attribute("#overlap", "max") == "0.4"
    asked = check(opened, ["cat", "dog", "cat", "cat", HOSTILE], picture)
    assert asked == {"score_threshold": "0.05"}
    opened.page.locator("#overlap").fill("0.3")
    asked = check(opened, ["cat", "dog", "cat", HOSTILE], picture)
    assert asked["iou_threshold"] == "0.3"
    assert "1 overlap a better one" in opened.text("#count-note")
    opened.page.check("#agnostic")
    asked = check(opened, ["cat", "cat"], picture)
    assert asked["class_agnostic"] == "true"
    opened.page.locator("#overlap").fill("0.4")
    assert "iou_threshold" not in check(opened, ["cat", "cat", "cat"], picture)
    opened.page.locator(".chip", has_text="cat").click()  # what is hidden drops nothing
    check(opened, ["dog", HOSTILE], picture)


def test_a_class_can_have_a_threshold_of_its_own(opened: Visit) -> None:
    picture = picture_file()
    assert opened.page.is_hidden("#same-thresholds")
    set_of(opened, "cat", 0.65)
    asked = check(opened, ["cat", "dog", "cat", HOSTILE], picture)
    assert asked["score_threshold"] == "0.05,cat:0.65"
    set_of(opened, "<img", 0.5)  # goes by its id
    asked = check(opened, ["cat", "dog", "cat"], picture)
    assert asked["score_threshold"] == "0.05,cat:0.65,#3:0.5"
    assert "2 below the thresholds" in opened.text("#count-note")
    opened.page.locator("#threshold").fill("0.85")
    check(opened, ["cat", "cat"], picture)
    opened.page.click("#same-thresholds")
    assert check(opened, ["cat"], picture) == {"score_threshold": "0.85"}
    assert opened.serious() == []


def test_the_overlap_follows_weights_that_are_reloaded(visiting: Visiting) -> None:
    detector = PageDetector()
    detector.info = dataclasses.replace(detector.info, iou_threshold=0.4)
    with live(detector) as url, visiting(url) as visit:
        visit.until_ready()
        assert visit.page.get_attribute("#overlap", "max") == "0.4"
        for overlap in (0.3, 0.6):
            detector.info = dataclasses.replace(detector.info, iou_threshold=overlap)
            visit.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # the page asks how it is
            visit.page.locator(f"#overlap[max='{overlap}']").wait_for(state="attached")
            assert visit.page.input_value("#overlap") == str(overlap)
