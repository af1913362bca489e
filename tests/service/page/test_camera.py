"""Pictures from the camera."""

from __future__ import annotations

from tests.support.pages import Visit, Visiting, picture_file


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
