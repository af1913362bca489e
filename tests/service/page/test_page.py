"""What people do on the page, on a desk and on a phone, in light and in dark."""

from __future__ import annotations

import json

from tests.support.pages import HOSTILE, Visit, Visiting


def test_the_sample_gets_its_boxes(visit: Visit) -> None:
    assert visit.fits()
    visit.page.click("#sample")
    visit.until_shown()
    assert visit.text("#count") == "4 objects"
    assert "640 × 480 px" in visit.text("#count-note")
    assert "2 below 0.50" in visit.text("#count-note")
    assert visit.rows() == [("cat", "0.98"), ("dog", "0.91"), ("cat", "0.72"), (HOSTILE, "0.55")]
    assert visit.pixel("picture", 0.5, 0.5)[3] == 255
    assert visit.pixel("boxes", 0.901, 0.7)[3] > 0  # the right edge of the third box
    assert visit.pixel("boxes", 0.95, 0.5)[3] == 0
    assert visit.paths("detect") == 1
    assert visit.fits()


def test_it_says_which_weights_serve_and_how(visit: Visit) -> None:
    assert visit.text("#status-word") == "Ready"
    assert visit.text("#status-weights") == "bundled"
    assert visit.page.is_hidden("#caveat")  # nothing out of the ordinary: this also holds the sentence it is known by
    visit.page.click("#status summary")
    assert {"fasterrcnn_resnet50_fpn", "bundled", "cpu", "fp32", "0 of at most 256"} <= set(
        visit.page.locator("#status-facts dd").all_inner_texts()
    )
    assert visit.fits()
    visit.page.keyboard.press("Escape")
    assert visit.page.is_hidden("#status-facts")


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
    press_tab(13)
    assert reached == [
        "tile",
        "threshold",
        "all-classes",
        "no-classes",
        "chip",
        "chip",
        "chip",
        "SUMMARY",
        "row",
        "curl",
        "code",
        "copy",
        "download",
    ]
    page.locator("#list .row").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert visit.selected() == ["0.72"]
    page.keyboard.press("End")
    assert visit.selected() == ["0.55"]
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    assert visit.selected() == ["0.98"]
    page.locator(".chip").first.focus()
    page.keyboard.press("Space")
    assert len(visit.rows()) == 2
    page.locator("#threshold").focus()
    page.keyboard.press("ArrowRight")
    assert visit.text("#threshold-value") == "0.51"


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
