"""Real Chromium against a real server, each test in several looks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from service.app import create_app
from service.settings import Settings
from tests.support.pages import LOOKS, Look, PageDetector, Visit, Visiting, visited
from tests.support.servers import served


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Playwright keeps an event loop in the main thread, which the other tests' own loops do not go with."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test in every look, or in those that its module names in `LOOKED_AT`."""
    if "look" in metafunc.fixturenames:
        names = getattr(metafunc.module, "LOOKED_AT", tuple(LOOKS))
        metafunc.parametrize("look", [LOOKS[name] for name in names], ids=names)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Closed after each module: while it is open its event loop counts as running, which other tests must not see."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install '.[dev]'")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    flags = ["--use-fake-device-for-media-stream", "--no-sandbox"]
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def visiting(browser: Any, look: Look) -> Visiting:
    """`visiting(url)`: the page in this look, see `visited`."""
    return partial(visited, browser, look)


@pytest.fixture(scope="module")
def page_url() -> Iterator[str]:
    """A service that is well."""
    with served(create_app(Settings(weights="bundled"), load=lambda _: [PageDetector()])) as url:
        yield url


@pytest.fixture
def visit(visiting: Visiting, page_url: str) -> Iterator[Visit]:
    """The page of a service that is well."""
    with visiting(page_url) as opened:
        opened.until_ready()
        yield opened


@pytest.fixture
def detector() -> PageDetector:
    return PageDetector()
