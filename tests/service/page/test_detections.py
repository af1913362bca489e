"""Boxes, captions and the list: equal to what the service draws, and readable in any number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from PIL import Image

from model.structures import score_text
from service.app import create_app
from service.images.drawing import class_color
from service.settings import Settings
from tests.support.pages import Found, PageDetector, Visit, Visiting, picture_file
from tests.support.servers import served

LOOKED_AT = ("desktop-light", "phone-light")
Open = Callable[..., AbstractContextManager[Visit]]


@pytest.fixture
def opened(detector: PageDetector, visiting: Visiting) -> Open:
    """`opened(weights=..., found=...)`: the page of a service with such a detector."""

    @contextmanager
    def open_page(
        *, weights: str = "bundled", found: list[Found] | None = None, failed: bool = False
    ) -> Iterator[Visit]:
        detector.info = dataclasses.replace(detector.info, weights=weights)
        detector.found = detector.found if found is None else found
        with (
            served(create_app(Settings(), load=lambda _: [detector])) as url,
            visiting(url, failed=failed) as visit,
        ):
            visit.until_ready()
            yield visit

    return open_page


@pytest.mark.parametrize("weights", ["COCO_V1", "random", "/weights/mine.pth"])
def test_weights_that_know_no_blood_cells_have_no_sample(weights: str, opened: Open) -> None:
    with opened(weights=weights) as visit:
        assert visit.page.is_hidden("#sample")


def test_two_classes_can_be_shown_and_hidden_together(opened: Open) -> None:
    whole = (0.1, 0.1, 0.9, 0.9)
    with opened(found=[(whole, 1, 0.9), (whole, 2, 0.8)]) as visit:
        visit.page.click("#sample")
        visit.until_shown()
        visit.page.click("#no-classes")
        assert visit.text("#count") == "No objects"
        visit.page.click("#all-classes")
        assert visit.text("#count") == "2 objects"


def test_colours_and_scores_are_those_that_the_service_draws(opened: Open) -> None:
    scores = [0.9995, 0.72, 0.29]
    found = [((0.1, 0.1 + 0.3 * at, 0.4, 0.3 + 0.3 * at), at + 1, score) for at, score in enumerate(scores)]
    with opened(found=found) as visit:
        visit.pick("mine.png", picture_file())
        visit.until_shown()
        visit.page.locator("#threshold").fill("0.05")
        assert visit.page.locator("#list .number").all_inner_texts() == ["0.99", "0.72", "0.29"]
        assert visit.page.locator("#list .number").all_inner_texts() == [score_text(score) for score in scores]
        with visit.page.expect_download() as download:
            visit.page.click("#download")
        with Image.open(download.value.path()) as stored:
            image = stored.convert("RGB")
        for (_, y1, x2, y2), label, _ in found:
            seen = image.getpixel((round(x2 * image.width), round((y1 + y2) / 2 * image.height)))
            assert seen == class_color(label)
        for label in range(1, 91):
            shown = visit.page.evaluate(
                "(label) => import('./page/boxes.js').then(({ classColors }) => classColors(label).color)", label
            )
            assert shown == f"rgb({' '.join(map(str, class_color(label)))})"


def test_a_long_list_scrolls_visibly_by_whole_rows(opened: Open) -> None:
    found = [((0.1, 0.1, 0.5, 0.5), 1, 0.99 - 0.004 * at) for at in range(60)]
    with opened(found=found) as visit:
        visit.page.click("#sample")
        visit.until_shown()
        area = visit.page.locator("#list")
        height, row = area.bounding_box()["height"], visit.page.locator(".row").first.bounding_box()["height"]
        assert height / row == pytest.approx(round(height / row))
        shown = round(height / row)
        assert visit.text("#list-more") == f"{60 - shown} more below"
        area.evaluate("(list) => list.scrollTo(0, 95)")
        visit.page.wait_for_timeout(300)
        assert area.evaluate("(list) => list.scrollTop") % row == 0
        visit.page.locator(".row").first.focus()
        visit.page.keyboard.press("End")
        visit.until_text("#list-more", "End of the list")
        visit.page.locator("#threshold").fill("0.98")
        assert visit.page.is_hidden("#list-more")


def test_the_picture_covers_no_text(opened: Open) -> None:
    found = [((0.1, 0.1, 0.5, 0.5), 1, 0.99 - 0.004 * at) for at in range(60)]
    with opened(found=found) as visit:
        visit.page.click("#sample")
        visit.until_shown()
        for top in range(0, 1400, 90):
            visit.page.evaluate("(top) => window.scrollTo(0, top)", top)
            picture = visit.page.locator("#view").bounding_box()
            for block in visit.page.locator(".panel .block").all():
                box = block.bounding_box()
                beside = box["x"] >= picture["x"] + picture["width"]
                assert beside or box["y"] >= picture["y"] + picture["height"] - 1


def test_the_picture_keeps_its_size_when_the_window_changes_while_scrolled(opened: Open) -> None:
    with opened() as visit:
        visit.page.click("#sample")
        visit.until_shown()
        size = visit.page.viewport_size
        before = visit.page.locator("#canvases").bounding_box()["height"]
        visit.page.set_viewport_size({**size, "height": size["height"] - 200})
        visit.page.evaluate("window.scrollTo(0, 400)")
        visit.page.set_viewport_size({**size, "width": size["width"] - 1})
        visit.page.set_viewport_size(size)
        visit.page.wait_for_timeout(100)
        assert visit.page.locator("#canvases").bounding_box()["height"] == before


def test_an_unknown_path_leads_back_to_the_page(opened: Open) -> None:
    with opened(failed=True) as visit:
        visit.page.goto(f"{visit.url}/detect/nothing")
        assert visit.text("h2") == "There is no such page"
        left = {round(part.bounding_box()["x"]) for part in visit.page.locator("main > *").all()}
        assert len(left) == 1  # one column
        assert visit.serious() == []
        visit.page.click("text=Detect in a picture")
        visit.until_ready()
