"""What was found: the list, the threshold, the classes, and the annotated picture."""

from __future__ import annotations

import dataclasses
import re

from PIL import Image

from model.weights.categories import Categories
from tests.support.pages import HOSTILE, Look, PageDetector, Visit, Visiting, picture_file
from tests.support.servers import live


def test_threshold_and_classes_ask_the_service_nothing(visit: Visit) -> None:
    visit.page.click("#sample")
    visit.until_shown()
    third_box = (0.901, 0.7)
    visit.set_threshold(0.05)
    assert visit.text("#count") == "6 objects"
    visit.set_threshold(0.9)
    assert [score for _, score in visit.rows()] == ["0.98", "0.91"]
    assert visit.text("#threshold-value") == "0.90"
    assert visit.pixel("boxes", *third_box)[3] == 0
    visit.set_threshold(0.5)
    assert visit.pixel("boxes", *third_box)[3] > 0
    cat = visit.page.locator(".chip", has_text="cat")
    assert cat.inner_text().split() == ["cat", "2"]
    cat.click()
    assert cat.get_attribute("aria-pressed") == "false"
    assert [name for name, _ in visit.rows()] == ["dog", HOSTILE]
    assert "2 in hidden classes" in visit.text("#count-note")
    assert visit.pixel("boxes", *third_box)[3] == 0
    cat.click()
    assert len(visit.rows()) == 4
    visit.page.click("#no-classes")
    assert visit.text("#count") == "No objects"
    visit.page.locator(".chip", has_text="dog").click()
    assert [name for name, _ in visit.rows()] == ["dog"]
    visit.page.click("#all-classes")
    assert len(visit.rows()) == 4
    visit.set_threshold(0.99)
    assert visit.text("#count") == "No objects"
    assert visit.paths("detect") == 1


def test_a_row_brings_out_its_box_and_a_box_its_row(visit: Visit, look: Look) -> None:
    visit.page.click("#sample")
    visit.until_shown()
    third_box = (0.901, 0.7)
    plain = visit.pixel("boxes", *third_box)[3]
    first = visit.page.locator("#list .row").first
    first.hover()
    assert visit.pixel("boxes", *third_box)[3] < plain  # the others step back
    assert visit.selected() == ["0.98"]
    visit.page.locator("h1").hover()
    assert visit.selected() == []
    assert visit.pixel("boxes", *third_box)[3] == plain
    area = visit.page.locator("#boxes").bounding_box()

    def at(x: float, y: float) -> tuple[float, float]:
        return area["x"] + x * area["width"], area["y"] + y * area["height"]

    visit.page.mouse.move(*at(0.7, 0.7))
    assert visit.selected() == ["0.72"]
    visit.page.mouse.move(*at(0.25, 0.25))
    assert visit.selected() == ["0.91"]  # the smaller of the two that are there
    if look.touch:
        visit.page.touchscreen.tap(*at(0.7, 0.2))
    else:
        visit.page.mouse.click(*at(0.7, 0.2))
    visit.page.locator("h1").hover()
    assert visit.selected() == ["0.55"]  # it stays
    visit.page.keyboard.press("Escape")
    assert visit.selected() == []


def test_the_time_is_told_by_stage(visit: Visit) -> None:
    visit.page.click("#sample")
    visit.until_shown()
    stages = visit.page.locator("#time-stages > div").all_inner_texts()
    told = {text.split("\n")[0].strip(): text.split("\n")[-1].strip() for text in stages}
    assert {"Decoding", "Waiting", "Inference", "Transfer and the rest", "Pictures in the batch"} <= set(told)
    assert all(re.fullmatch(r"[\d.]+ m?s", told[stage]) for stage in ("Decoding", "Waiting", "Inference"))
    assert told["Pictures in the batch"] == "1"
    assert re.fullmatch(r"[\d.]+ m?s", visit.text("#time-total"))


def test_the_annotated_picture_is_downloaded_in_its_own_size(visit: Visit) -> None:
    visit.pick("mine.photo.png", picture_file(1200, 900))
    visit.until_shown()
    with visit.page.expect_download() as download:
        visit.page.click("#download")
    assert download.value.suggested_filename == "mine.photo-detections.png"
    with Image.open(download.value.path()) as stored:
        image = stored.convert("RGB")
        assert image.size == (1200, 900)
        assert image.getpixel((600, 700)) == (30, 60, 200)
        assert image.getpixel((1080, 700)) != (30, 60, 200)  # the right edge of the third box


def test_a_picture_with_nothing_in_it(visit: Visit) -> None:
    visit.pick("tiny.png", picture_file(32, 32))
    visit.until_shown()
    assert visit.text("#count") == "No objects"
    assert "nothing was found at any score" in visit.text("#count-note")
    assert visit.fits()


def test_names_are_text_and_nothing_else(visit: Visit) -> None:
    visit.pick(f"{HOSTILE}.png", picture_file())
    visit.until_shown()
    assert visit.text("#file-name") == f"{HOSTILE}.png"
    assert visit.page.locator("img").count() == 0
    assert HOSTILE in visit.page.locator(".chip .name").all_inner_texts()


def test_no_row_of_many_classes_is_cut(visiting: Visiting) -> None:
    detector = PageDetector()
    names = [f"class number {n}" for n in range(60)]
    detector.info = dataclasses.replace(detector.info, categories=Categories.of_objects(names))
    detector.found = [((0.1, 0.1, 0.5, 0.5), label, 0.9) for label in range(1, len(names) + 1)]
    with live(detector) as url, visiting(url) as visit:
        visit.until_ready()
        visit.pick("mine.png", picture_file())
        visit.until_shown()
        above, below, cut = visit.page.evaluate(
            """() => {
                const room = document.getElementById("classes").getBoundingClientRect();
                const chips = [...document.querySelectorAll(".chip")].map((chip) => chip.getBoundingClientRect());
                const above = chips.filter((chip) => chip.bottom <= room.bottom).length;
                const below = chips.filter((chip) => chip.top >= room.bottom).length;
                return [above, below, chips.length - above - below];
            }"""
        )
        assert above > 0
        assert below > 0
        assert cut == 0
