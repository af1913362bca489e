"""The page in a browser, with a detector that finds the same things in every picture."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from model.weights.categories import Categories
from service.devices.detector import Detections, ModelInfo

_KEEPS_OUT = {"serious", "critical"}
_COMPLAINTS = {"error", "warning"}
HOSTILE = "<img src=x onerror=alert(1)>"
# Box as fractions of the picture, label, score.
Found = tuple[tuple[float, float, float, float], int, float]
FOUND: list[Found] = [  # best first
    ((0.10, 0.10, 0.50, 0.50), 1, 0.98),
    ((0.20, 0.20, 0.30, 0.30), 2, 0.91),
    ((0.55, 0.55, 0.90, 0.90), 1, 0.72),
    ((0.60, 0.10, 0.90, 0.40), 3, 0.55),
    ((0.05, 0.70, 0.25, 0.95), 2, 0.30),
    ((0.30, 0.60, 0.45, 0.80), 1, 0.08),
]


class PageDetector:
    """Finds `found` in every picture of more than 64 px, and nothing in smaller ones."""

    def __init__(self, weights: str = "bundled") -> None:
        self.info = ModelInfo("fasterrcnn_resnet50_fpn", weights, Categories.of_objects(["cat", "dog", HOSTILE]))
        self.device = "cpu"
        self.precision, self.backend = "fp32", "torch"
        self.best_batch_size = 1
        self.found = list(FOUND)
        self.broken = False
        self.gate = threading.Event()
        self.gate.set()

    def padded_shape(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        return size_hw

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        assert self.gate.wait(60)
        if self.broken:
            raise RuntimeError("this device is broken")
        return [self._found(*image.shape[1:]) for image in images]

    def _found(self, height: int, width: int) -> Detections:
        found = self.found if max(height, width) > 64 else []
        boxes = np.array([box for box, _, _ in found], dtype=np.float32).reshape(-1, 4)
        return Detections(
            boxes=(boxes * (width, height, width, height)).astype(np.float32),
            labels=np.array([label for _, label, _ in found], dtype=np.int64),
            scores=np.array([score for _, _, score in found], dtype=np.float32),
        )


@dataclass(frozen=True)
class Look:
    """A size of the window and a colour scheme."""

    name: str
    width: int
    height: int
    scheme: str
    touch: bool = False


LOOKS = {
    "desktop-light": Look("desktop-light", 1280, 800, "light"),
    "desktop-dark": Look("desktop-dark", 1280, 800, "dark"),
    "phone-light": Look("phone-light", 360, 740, "light", touch=True),
    "phone-dark": Look("phone-dark", 360, 740, "dark", touch=True),
}


@dataclass
class Visit:
    """A page that is open, with what it asked for and complained of."""

    page: Any
    url: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def paths(self, path: str) -> int:
        """How often a path was asked for."""
        return sum(bool(re.match(rf"{re.escape(self.url)}/{path}(\?|$)", asked)) for asked in self.requests)

    def pick(self, name: str, data: bytes, media_type: str = "image/png") -> None:
        self.page.set_input_files("#file", {"name": name, "mimeType": media_type, "buffer": data})

    def until_shown(self) -> None:
        self.page.wait_for_selector("main[data-state=shown]")

    def until_ready(self) -> None:
        self.page.wait_for_selector("#status[data-status=ok]")

    def until_text(self, selector: str, text: str) -> None:
        """Not with `wait_for_function`, whose `eval` the page's policy forbids."""
        self.page.locator(selector, has_text=text).wait_for()

    def serious(self) -> list[str]:
        """What axe finds that keeps people out."""
        axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install '.[dev]'")
        violations = axe.Axe().run(self.page).response["violations"]
        return [f"{v['id']}: {v['nodes'][0]['html'][:160]}" for v in violations if v["impact"] in _KEEPS_OUT]

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def rows(self) -> list[tuple[str, str]]:
        """Name and score of each row of the list that is shown."""
        shown = self.page.locator("#list .row:visible")
        return [(row.locator(".name").inner_text(), row.locator(".number").inner_text()) for row in shown.all()]

    def selected(self) -> list[str]:
        """Scores of the rows that are selected."""
        return [row.inner_text() for row in self.page.locator("#list [aria-selected=true] .number").all()]

    def set_threshold(self, value: float) -> None:
        self.page.locator("#threshold").fill(str(value))

    def fits(self) -> bool:
        """Whether the page is no wider than its window."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))

    def pixel(self, canvas: str, x: float, y: float) -> list[int]:
        """RGBA of a canvas at a place given in fractions of its size."""
        found: list[int] = self.page.evaluate(
            """([id, x, y]) => {
                const canvas = document.getElementById(id);
                const probe = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
                probe.drawImage(canvas, -Math.floor(x * canvas.width), -Math.floor(y * canvas.height));
                return [...probe.getImageData(0, 0, 1, 1).data];
            }""",
            [canvas, x, y],
        )
        return found


# `visiting(url, failed=..., **options of a context)`
Visiting = Callable[..., AbstractContextManager[Visit]]


@contextmanager
def visited(browser: Any, look: Look, url: str, *, failed: bool = False, **options: Any) -> Iterator[Visit]:
    """Open the page in a look; complaints in the console fail the test.

    With `failed=True` those of Chromium about answers other than 2xx are expected.
    """
    context = browser.new_context(
        viewport={"width": look.width, "height": look.height},
        color_scheme=look.scheme,
        has_touch=look.touch,
        is_mobile=look.touch,
        **options,
    )
    context.set_default_timeout(20_000)
    page = context.new_page()
    opened = Visit(page, url)
    page.on("request", lambda asked: opened.requests.append(asked.url))
    page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    page.on("console", lambda said: opened.complaints.append(said.text) if said.type in _COMPLAINTS else None)
    try:
        page.goto(url)
        yield opened
    finally:
        context.close()
    expected = "Failed to load resource" if failed else "nothing at all"
    assert [text for text in opened.complaints if not text.startswith(expected)] == []
    assert [asked for asked in opened.requests if not asked.startswith((url, "blob:"))] == []


def picture_file(width: int = 640, height: int = 480, image_format: str = "PNG", **options: Any) -> bytes:
    """Draw a picture that is red at its upper left and blue elsewhere."""
    image = Image.new("RGB", (width, height), (30, 60, 200))
    image.paste((220, 20, 20), (0, 0, width // 4, height // 4))
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()
