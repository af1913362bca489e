"""What the page says when the service is not ready, or rejects; and that everybody can use it (axe)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.lifecycle import Service
from service.settings import Settings
from tests.support.pages import PageDetector, Visiting, picture_file
from tests.support.servers import served

# What stands in the way stands there in the same way in any colour; axe looks at the colours of it in both of these.
LOOKED_AT = ("desktop-light", "phone-dark")
KEY = "it's-the-secret-of-the-page"


class LoadedDetector(PageDetector):
    """Is loaded once `loading` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.loading = threading.Event()


class Serve:
    """`serve(detector, ready=..., setting=value)`: the address of such a service."""

    service: Service

    def __call__(self, detector: LoadedDetector, *, ready: bool = True, **settings: Any) -> AbstractContextManager[str]:
        def load(_: Settings) -> list[PageDetector]:
            assert detector.loading.wait(60)
            return [detector]

        app = create_app(Settings(**settings), load=load)
        self.service = app.state.service
        return served(app, ready=ready)


@pytest.fixture
def serve() -> Serve:
    return Serve()


@pytest.fixture
def detector() -> Iterator[LoadedDetector]:
    detector = LoadedDetector()
    detector.loading.set()
    yield detector
    detector.gate.set()
    detector.loading.set()


def test_axe_finds_nothing_serious_in_what_stands_in_the_way(
    detector: LoadedDetector, serve: Serve, visiting: Visiting
) -> None:
    with serve(detector, api_keys=KEY) as url, visiting(url, failed=True, permissions=["camera"]) as visit:
        visit.until_ready()
        visit.page.click("#sample")
        visit.page.wait_for_selector("#api-key")
        assert visit.serious() == []
        visit.page.click("#camera")
        visit.page.wait_for_selector("#camera-take")
        assert visit.serious() == []
        visit.page.click("#camera-cancel")


def test_loading_is_said_and_waited_for(detector: LoadedDetector, serve: Serve, visiting: Visiting) -> None:
    detector.loading.clear()
    with serve(detector, ready=False) as url, visiting(url, failed=True) as visit:
        visit.page.wait_for_selector("#status[data-status=loading]")
        assert visit.text("#status-word") == "Loading the model"
        assert visit.text("#caveat") == "The model is being loaded."
        assert visit.page.is_hidden("#sample")
        visit.pick("mine.png", picture_file())
        visit.page.wait_for_selector(".countdown")
        assert "The service is not ready" in visit.text("#notice")
        assert "Trying again in" in visit.text(".countdown")
        assert visit.serious() == []
        detector.loading.set()
        visit.until_shown()  # by itself
        assert visit.page.is_hidden("#notice")
        visit.until_ready()
        assert visit.text("#status-word") == "Ready"


def test_failing_is_said(detector: LoadedDetector, serve: Serve, visiting: Visiting) -> None:
    with serve(detector) as url, visiting(url, failed=True) as visit:
        visit.until_ready()
        detector.broken = True
        visit.page.click("#sample")
        visit.page.wait_for_selector("#notice button")
        visit.page.reload()
        visit.page.wait_for_selector("#status[data-status=failing]")
        assert visit.text("#status-word") == "Failing"
        assert "No device answers" in visit.text("#caveat")


def test_draining_is_said_and_then_that_nothing_answers(
    detector: LoadedDetector, serve: Serve, visiting: Visiting
) -> None:
    with ExitStack() as server:
        url = server.enter_context(serve(detector))
        with visiting(url, failed=True) as visit:
            visit.until_ready()
            serve.service.stop_accepting()
            visit.page.reload()
            visit.page.wait_for_selector("#status[data-status=draining]")
            assert visit.text("#status-word") == "Shutting down"
            assert "what was accepted is being answered" in visit.text("#caveat")
            visit.page.click("#sample")
            visit.page.wait_for_selector(".countdown")
            server.close()
            visit.page.wait_for_selector("#status[data-status=unreachable]")
            visit.page.locator("#notice button", has_text="Try now").click()
            visit.until_text("#notice", "The service cannot be reached")


def test_a_full_queue_is_counted_down_and_tried_again(
    detector: LoadedDetector, serve: Serve, visiting: Visiting
) -> None:
    with (
        serve(detector, queue_capacity=1) as url,
        visiting(url, failed=True) as visit,
        ThreadPoolExecutor(1) as other,
    ):
        visit.until_ready()
        detector.gate.clear()
        first = other.submit(httpx.post, f"{url}/detect", content=picture_file(), timeout=60)
        until_in_flight(url)
        visit.page.click("#sample")
        visit.page.wait_for_selector(".countdown")
        assert "The service is busy" in visit.text("#notice")
        detector.gate.set()
        assert first.result().status_code == 200
        visit.until_shown()
        assert visit.page.is_hidden("#notice")


def test_the_countdown_can_be_ended(detector: LoadedDetector, serve: Serve, visiting: Visiting) -> None:
    with (
        serve(detector, queue_capacity=1) as url,
        visiting(url, failed=True) as visit,
        ThreadPoolExecutor(1) as other,
    ):
        visit.until_ready()
        detector.gate.clear()
        first = other.submit(httpx.post, f"{url}/detect", content=picture_file(), timeout=60)
        until_in_flight(url)
        visit.page.click("#sample")
        visit.page.locator("#notice button", has_text="Cancel").click()
        asked = visit.paths("detect")
        assert visit.page.is_hidden("#notice")
        visit.page.wait_for_timeout(1500)
        assert visit.paths("detect") == asked
        detector.gate.set()
        first.result()


def until_in_flight(url: str) -> None:
    while httpx.get(f"{url}/healthz").json()["images_in_flight"] == 0:
        pass


def test_what_is_rejected_is_told_in_words(detector: LoadedDetector, serve: Serve, visiting: Visiting) -> None:
    limits: dict[str, Any] = {"max_body_bytes": 200_000, "max_image_pixels": 10_000}
    with serve(detector, **limits) as url, visiting(url, failed=True) as visit:
        visit.until_ready()
        for name, data, headline, detail in (
            ("large.png", bytes(4_000_000), "Too large", "at most 200,000 are taken"),
            ("wide.png", picture_file(640, 480), "Too large", "640 x 480 pixels"),
            ("paper.pdf", b"%PDF-1.7", "This kind of file is not taken", "This is a PDF"),
            ("words.txt", b"words", "This file cannot be read as a picture", "This is not an image"),
        ):
            visit.pick(name, data, "application/pdf" if name.endswith("pdf") else "image/png")
            visit.until_text("#notice h2", headline)
            visit.until_text("#notice p", detail)
            assert len(visit.text(".request-id").removeprefix("Request ")) == 32
            assert visit.page.is_hidden("#panel")
            assert visit.page.is_hidden("#progress")
        visit.pick("small.png", picture_file(90, 90))
        visit.until_shown()
        assert visit.page.is_hidden("#notice")


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(
    detector: LoadedDetector, serve: Serve, visiting: Visiting
) -> None:
    with serve(detector, api_keys=KEY) as url, visiting(url, failed=True) as visit:
        visit.until_ready()
        visit.page.click("#sample")
        visit.page.fill("#api-key", "wrong")
        visit.page.keyboard.press("Enter")
        visit.page.locator("#notice", has_text="This API key was refused").wait_for()
        visit.page.fill("#api-key", KEY)
        visit.page.keyboard.press("Enter")
        visit.until_shown()
        assert visit.page.evaluate("JSON.stringify([Object.values(sessionStorage), Object.keys(localStorage)])") == (
            json.dumps([[KEY], []], separators=(",", ":"))
        )
        assert visit.page.context.cookies() == []
        for language in ("curl", "python"):
            visit.page.locator(f"input[value={language}]").check(force=True)
            assert KEY not in visit.text("#code")
            assert "FRCNN_KEY" in visit.text("#code")
        visit.page.reload()
        visit.until_ready()
        visit.page.click("#sample")
        visit.until_shown()  # a reload does not ask again
        visit.page.click("#status summary")
        visit.page.click("#forget-key")
        visit.page.keyboard.press("Escape")
        visit.page.click("#sample")
        visit.page.wait_for_selector("#api-key")
