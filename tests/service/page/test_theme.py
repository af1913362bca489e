"""Light and dark."""

from __future__ import annotations

import re

from tests.support.pages import Look, Visit


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
