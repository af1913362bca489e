"""Swagger UI at `/docs`: it loads from this server alone, and calls what it documents."""

from __future__ import annotations

from tests.support.pages import Visiting

LOOKED_AT = ("desktop-light",)


def test_the_documents_page_loads_nothing_from_elsewhere_and_tries_a_request(visiting: Visiting, page_url: str) -> None:
    with visiting(page_url) as opened:
        opened.page.goto(f"{page_url}/docs")
        opened.page.locator("#operations-health-livez_livez_get .opblock-summary-control").click()
        opened.page.locator("#operations-health-livez_livez_get .try-out__btn").click()
        opened.page.locator("#operations-health-livez_livez_get button.execute").click()
        opened.page.locator(".live-responses-table .response-col_status", has_text="200").wait_for()
        assert opened.paths("livez") == 1
