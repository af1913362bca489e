"""Pictures that people pick, drop and paste."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from tests.support.pages import Look, Visit, picture_file

# A file as the browser hands it over when it is dropped or pasted.
TRANSFER = """([name, type, data]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type }));
    return transfer;
}"""


def dropped(visit: Visit, event: str, name: str, data: bytes) -> None:
    transfer = visit.page.evaluate_handle(TRANSFER, [name, "image/png", base64.b64encode(data).decode()])
    if event == "paste":
        visit.page.evaluate(
            "(clipboardData) => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData }))", transfer
        )
    else:
        visit.page.dispatch_event("body", event, {"dataTransfer": transfer})


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


def test_a_link_that_is_dropped_is_rejected_in_words(visit: Visit) -> None:
    transfer = visit.page.evaluate_handle(
        "() => { const t = new DataTransfer(); t.setData('text/uri-list', 'http://x/'); return t; }"
    )
    visit.page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    assert "That was no file" in visit.text("#notice")


def test_a_picture_is_pasted(visit: Visit) -> None:
    dropped(visit, "paste", "image.png", picture_file())
    visit.until_shown()
    assert visit.text("#file-name") == "pasted.png"


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
    assert visit.fits()
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
    assert len(visit.rows()) == 4


def test_the_newest_picture_wins(visit: Visit) -> None:
    visit.pick("first.png", picture_file(640, 480))
    visit.pick("second.png", picture_file(320, 200))
    visit.until_text("#count-note", "320 × 200")
    assert visit.text("#file-name") == "second.png"
