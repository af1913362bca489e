"""What people do on the page, on a desk and on a phone, in light and in dark."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import pytest
from PIL import Image

from tests.support.pages import Look, Visit, Visiting, picture_file

HOSTILE = "<img src=x onerror=alert(1)>"
# A file as the browser hands it over when it is dropped or pasted.
TRANSFER = """([name, type, data]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type }));
    return transfer;
}"""


def dropped(visit: Visit, event: str, name: str, data: bytes) -> Any:
    transfer = visit.page.evaluate_handle(TRANSFER, [name, "image/png", base64.b64encode(data).decode()])
    if event == "paste":
        visit.page.evaluate(
            "(clipboardData) => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData }))", transfer
        )
    else:
        visit.page.dispatch_event("body", event, {"dataTransfer": transfer})


def rows(visit: Visit) -> list[tuple[str, str]]:
    shown = visit.page.locator("#list .row:visible")
    return [(row.locator(".name").inner_text(), row.locator(".number").inner_text()) for row in shown.all()]


def selected(visit: Visit) -> list[str]:
    return [row.inner_text() for row in visit.page.locator("#list [aria-selected=true] .number").all()]


def set_threshold(visit: Visit, value: float) -> None:
    visit.page.locator("#threshold").fill(str(value))


def fits(visit: Visit) -> bool:
    return bool(visit.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def test_the_sample_gets_its_boxes(visit: Visit) -> None:
    assert fits(visit)
    visit.page.click("#sample")
    visit.until_shown()
    assert visit.text("#count") == "4 objects"
    assert "640 × 480 px" in visit.text("#count-note")
    assert "2 below 0.50" in visit.text("#count-note")
    assert rows(visit) == [("cat", "0.98"), ("dog", "0.91"), ("cat", "0.72"), (HOSTILE, "0.55")]
    assert visit.pixel("picture", 0.5, 0.5)[3] == 255
    assert visit.pixel("boxes", 0.901, 0.7)[3] > 0  # the right edge of the third box
    assert visit.pixel("boxes", 0.95, 0.5)[3] == 0
    assert visit.paths("detect") == 1
    assert fits(visit)


def test_it_says_which_weights_serve_and_how(visit: Visit) -> None:
    assert visit.text("#status-word") == "Ready"
    assert visit.text("#status-weights") == "bundled"
    assert visit.page.is_hidden("#caveat")  # nothing out of the ordinary: this also holds the sentence it is known by
    visit.page.click("#status summary")
    assert {"fasterrcnn_resnet50_fpn", "bundled", "cpu", "fp32", "0 of at most 256"} <= set(
        visit.page.locator("#status-facts dd").all_inner_texts()
    )
    assert fits(visit)
    visit.page.keyboard.press("Escape")
    assert visit.page.is_hidden("#status-facts")


def test_a_file_is_picked(visit: Visit) -> None:
    with visit.page.expect_file_chooser() as chooser:
        visit.page.click("#choose")
    chooser.value.set_files({"name": "mine.png", "mimeType": "image/png", "buffer": picture_file()})
    visit.until_shown()
    assert visit.text("#file-name") == "mine.png"


def test_a_file_is_dropped(visit: Visit) -> None:
    dropped(visit, "dragenter", "mine.png", picture_file())
    assert visit.page.is_visible(".drop-hint")
    dropped(visit, "drop", "mine.png", picture_file())
    visit.until_shown()
    assert visit.page.is_hidden(".drop-hint")
    assert visit.text("#file-name") == "mine.png"


def test_a_link_that_is_dropped_is_refused_in_words(visit: Visit) -> None:
    transfer = visit.page.evaluate_handle(
        "() => { const t = new DataTransfer(); t.setData('text/uri-list', 'http://x/'); return t; }"
    )
    visit.page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    assert "That was no file" in visit.text("#notice")


def test_a_picture_is_pasted(visit: Visit) -> None:
    dropped(visit, "paste", "image.png", picture_file())
    visit.until_shown()
    assert visit.text("#file-name") == "pasted.png"


def test_the_camera_gives_a_picture(visiting: Visiting, page_url: str) -> None:
    with visiting(page_url, permissions=["camera"]) as visit:
        visit.page.click("#camera")
        visit.page.click("#camera-take")
        visit.until_shown()
        assert visit.text("#file-name") == "camera.jpg"
        assert visit.page.evaluate("document.getElementById('camera-video').srcObject") is None
        assert visit.page.is_hidden("#camera-dialog")
        visit.page.click("#camera")
        visit.page.wait_for_selector("#camera-take")
        visit.page.keyboard.press("Escape")
        visit.page.wait_for_selector("#camera-dialog", state="hidden")
        assert visit.page.evaluate("document.activeElement.id") == "camera"
        assert visit.paths("detect") == 1


def test_a_camera_that_is_forbidden_is_told_in_words(visit: Visit) -> None:
    visit.page.click("#camera")
    visit.page.wait_for_selector("#notice")
    assert "not allowed to use the camera" in visit.text("#notice")


def test_without_a_live_camera_the_device_takes_the_picture(visit: Visit) -> None:
    visit.page.evaluate("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    with visit.page.expect_file_chooser() as chooser:
        visit.page.click("#camera")
    chooser.value.set_files({"name": "taken.png", "mimeType": "image/png", "buffer": picture_file()})
    visit.until_shown()


def test_threshold_and_classes_ask_the_service_nothing(visit: Visit) -> None:
    visit.page.click("#sample")
    visit.until_shown()
    third_box = (0.901, 0.7)
    set_threshold(visit, 0.05)
    assert visit.text("#count") == "6 objects"
    set_threshold(visit, 0.9)
    assert [score for _, score in rows(visit)] == ["0.98", "0.91"]
    assert visit.text("#threshold-value") == "0.90"
    assert visit.pixel("boxes", *third_box)[3] == 0
    set_threshold(visit, 0.5)
    assert visit.pixel("boxes", *third_box)[3] > 0
    cat = visit.page.locator(".chip", has_text="cat")
    assert cat.inner_text().split() == ["cat", "2"]
    cat.click()
    assert cat.get_attribute("aria-pressed") == "false"
    assert [name for name, _ in rows(visit)] == ["dog", HOSTILE]
    assert "2 in hidden classes" in visit.text("#count-note")
    assert visit.pixel("boxes", *third_box)[3] == 0
    cat.click()
    assert len(rows(visit)) == 4
    visit.page.click("#no-classes")
    assert visit.text("#count") == "No objects"
    visit.page.locator(".chip", has_text="dog").click()
    assert [name for name, _ in rows(visit)] == ["dog"]
    visit.page.click("#all-classes")
    assert len(rows(visit)) == 4
    set_threshold(visit, 0.99)
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
    assert selected(visit) == ["0.98"]
    visit.page.locator("h1").hover()
    assert selected(visit) == []
    assert visit.pixel("boxes", *third_box)[3] == plain
    area = visit.page.locator("#boxes").bounding_box()

    def at(x: float, y: float) -> tuple[float, float]:
        return area["x"] + x * area["width"], area["y"] + y * area["height"]

    visit.page.mouse.move(*at(0.7, 0.7))
    assert selected(visit) == ["0.72"]
    visit.page.mouse.move(*at(0.25, 0.25))
    assert selected(visit) == ["0.91"]  # the smaller of the two that are there
    if look.touch:
        visit.page.touchscreen.tap(*at(0.7, 0.2))
    else:
        visit.page.mouse.click(*at(0.7, 0.2))
    visit.page.locator("h1").hover()
    assert selected(visit) == ["0.55"]  # it stays
    visit.page.keyboard.press("Escape")
    assert selected(visit) == []


def test_everything_is_reached_by_keyboard(visit: Visit) -> None:
    page = visit.page
    reached: list[str] = []

    def press_tab(times: int) -> None:
        for _ in range(times):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate("((at) => at.id || at.className || at.value || at.tagName)(document.activeElement)")
            )

    press_tab(6)
    assert reached == ["SUMMARY", "A", "theme", "choose", "camera", "sample"]
    page.keyboard.press("Enter")
    visit.until_shown()
    reached.clear()
    press_tab(11)
    assert reached == [
        "threshold",
        "all-classes",
        "no-classes",
        "chip",
        "chip",
        "chip",
        "row",
        "curl",
        "code",
        "copy",
        "download",
    ]
    page.locator("#list .row").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert selected(visit) == ["0.72"]
    page.keyboard.press("End")
    assert selected(visit) == ["0.55"]
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    assert selected(visit) == ["0.98"]
    page.locator(".chip").first.focus()
    page.keyboard.press("Space")
    assert len(rows(visit)) == 2
    page.locator("#threshold").focus()
    page.keyboard.press("ArrowRight")
    assert visit.text("#threshold-value") == "0.51"


def test_the_time_is_told_by_stage(visit: Visit) -> None:
    visit.page.click("#sample")
    visit.until_shown()
    stages = visit.page.locator("#time-stages > div").all_inner_texts()
    told = {text.split("\n")[0].strip(): text.split("\n")[-1].strip() for text in stages}
    assert {"Decoding", "Waiting", "Inference", "Transfer and the rest", "Pictures in the batch"} <= set(told)
    assert all(re.fullmatch(r"[\d.]+ m?s", told[stage]) for stage in ("Decoding", "Waiting", "Inference"))
    assert told["Pictures in the batch"] == "1"
    assert re.fullmatch(r"[\d.]+ m?s", visit.text("#time-total"))


def test_the_code_is_copied(visiting: Visiting, page_url: str) -> None:
    with visiting(page_url, permissions=["clipboard-read", "clipboard-write"]) as visit:
        visit.page.click("#sample")
        visit.until_shown()
        for language, sign in (
            ("curl", "curl "),
            ("python", "httpx.post("),
            ("javascript", "await fetch("),
            ("json", '"label_names"'),
        ):
            visit.page.locator(f"input[value={language}]").check(force=True)
            visit.until_text("#copy", "Copy")
            visit.page.click("#copy")
            visit.until_text("#copy", "Copied")
            copied = visit.page.evaluate("navigator.clipboard.readText()")
            assert sign in copied
            assert copied == visit.page.text_content("#code")
        answer = json.loads(copied)
        assert answer["labels"] == [1, 2, 1, 3]
        assert answer["image"] == {"width": 640, "height": 480}


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


def test_a_turned_picture_is_shown_upright(visit: Visit) -> None:
    upright = Image.open(io.BytesIO(picture_file(320, 160)))
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what a camera held so does to the picture
    for orientation in range(1, 9):
        stored = upright.transpose(Image.Transpose(turns[orientation])) if orientation > 1 else upright
        exif = Image.Exif()
        exif[0x0112] = orientation
        buffer = io.BytesIO()
        stored.save(buffer, "JPEG", exif=exif, quality=95)
        visit.pick("turned.jpg", buffer.getvalue(), "image/jpeg")
        visit.page.wait_for_selector("main[data-state=busy]", state="detached")
        assert "320 × 160 px" in visit.text("#count-note")
        red, _, blue, _ = visit.pixel("picture", 0.1, 0.1)
        assert red > 150 > blue, orientation
        for corner in ((0.9, 0.1), (0.1, 0.9), (0.9, 0.9)):
            red, _, blue, _ = visit.pixel("picture", *corner)
            assert red < 100 < blue, orientation
    assert visit.paths("detect") == 8


def test_a_picture_of_4000_pixels_fits(visit: Visit, look: Look) -> None:
    visit.pick("large.jpg", picture_file(4000, 3000, "JPEG"), "image/jpeg")
    visit.until_shown()
    assert fits(visit)
    area = visit.page.locator("#boxes").bounding_box()
    assert 200 < area["width"] <= look.width
    assert area["height"] <= look.height
    assert area["width"] / area["height"] == pytest.approx(4 / 3, rel=0.02)
    with visit.page.expect_download() as download:
        visit.page.click("#download")
    with Image.open(download.value.path()) as image:
        assert image.size == (4000, 3000)


def test_what_the_browser_cannot_show_the_service_shows(visit: Visit) -> None:
    visit.pick("scan.tiff", picture_file(320, 240, "TIFF"), "image/tiff")
    visit.until_shown()
    red, _, blue, alpha = visit.pixel("picture", 0.1, 0.1)
    assert red > 150 > blue
    assert alpha == 255
    assert len(rows(visit)) == 4


def test_a_picture_with_nothing_in_it(visit: Visit) -> None:
    visit.pick("tiny.png", picture_file(32, 32))
    visit.until_shown()
    assert visit.text("#count") == "No objects"
    assert "nothing was found at any score" in visit.text("#count-note")
    assert fits(visit)


def test_the_newest_picture_wins(visit: Visit) -> None:
    visit.pick("first.png", picture_file(640, 480))
    visit.pick("second.png", picture_file(320, 200))
    visit.until_text("#count-note", "320 × 200")
    assert visit.text("#file-name") == "second.png"


def test_names_are_text_and_nothing_else(visit: Visit) -> None:
    visit.pick(f"{HOSTILE}.png", picture_file())
    visit.until_shown()
    assert visit.text("#file-name") == f"{HOSTILE}.png"
    assert visit.page.locator("img").count() == 0
    assert HOSTILE in visit.page.locator(".chip .name").all_inner_texts()


def test_colours_follow_the_system_and_the_button(visit: Visit, look: Look) -> None:
    def is_dark() -> bool:
        color = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", color)[:3])) < 380

    assert is_dark() == (look.scheme == "dark")
    visit.page.click("#theme")
    assert not is_dark()
    visit.page.click("#theme")
    assert is_dark()
    visit.page.reload()
    assert is_dark()
    assert visit.page.get_attribute("#theme", "aria-label") == "Colours: dark"
    visit.page.click("#theme")
    assert is_dark() == (look.scheme == "dark")


def test_axe_finds_nothing_serious(visit: Visit) -> None:
    assert visit.serious() == []
    visit.page.click("#status summary")
    assert visit.serious() == []
    visit.page.keyboard.press("Escape")
    visit.page.click("#sample")
    visit.until_shown()
    visit.page.locator("#list .row").first.focus()
    visit.page.locator(".chip").first.click()
    assert visit.serious() == []
