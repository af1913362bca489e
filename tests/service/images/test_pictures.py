"""How the service answers what the decoder rejects."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.images.decoding import ACCEPTED
from service.errors import BrokenImageError, TooLargeError, UnavailableError, UnsupportedTypeError
from service.images.pictures import Picture, decode, from_pixels


def png(size_wh: tuple[int, int] = (24, 16)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size_wh, (1, 2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", BrokenImageError),
        (png()[:60], BrokenImageError),
        (b"%PDF-1.7", UnsupportedTypeError),
        (png((101, 100)), TooLargeError),
    ],
)
def test_each_rejection_has_its_problem(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        decode(data, max_pixels=10_000)


def test_what_is_accepted_is_told() -> None:
    with pytest.raises(BrokenImageError, match=f"not an image; accepted are {ACCEPTED}"):
        decode(b"text", max_pixels=10_000)


def test_a_picture_is_a_view_of_rows_of_pixels() -> None:
    picture = decode(png(), max_pixels=10_000)
    assert picture.size_hw == (16, 24)
    assert picture.pixels.permute(1, 2, 0).is_contiguous()
    assert picture.pixels[:, 0, 0].tolist() == [1, 2, 3]


def exhausted(*_: Any, **__: Any) -> Any:
    raise MemoryError


def test_want_of_memory_is_not_the_caller_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: tuple[Callable[[], Picture], ...] = (
        lambda: decode(png(), max_pixels=10_000, allocate=exhausted),
        lambda: from_pixels(np.zeros((2, 2, 3), np.uint8), allocate=exhausted),
    )
    for attempt in attempts:
        with pytest.raises(UnavailableError, match="memory") as caught:
            attempt()
        assert int(caught.value.headers["Retry-After"]) > 0


def exhaust_pillow(patch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(*_: Any) -> Any:
        raise error

    patch.setattr("PIL.ImageFile.ImageFile.load", load)


@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory error when reading image file")])
def test_want_of_memory_in_pillow_is_neither(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    data = png()
    exhaust_pillow(monkeypatch, error)
    with pytest.raises(UnavailableError):
        decode(data, max_pixels=10_000)


def test_other_failures_in_pillow_are(monkeypatch: pytest.MonkeyPatch) -> None:
    data = png()
    exhaust_pillow(monkeypatch, OSError("broken data stream"))
    with pytest.raises(BrokenImageError):
        decode(data, max_pixels=10_000)
