from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.client import ImageError
from service.client.images import to_bytes


def sent(source: Any) -> Image.Image:
    return Image.open(io.BytesIO(to_bytes(source)))


def gradient(*shape: int) -> np.ndarray[Any, Any]:
    return np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)])
def test_arrays_lose_nothing(shape: tuple[int, ...]) -> None:
    array = gradient(*shape)
    assert np.array_equal(np.asarray(sent(array)), array)
    assert np.array_equal(np.asarray(sent(array[::-1, ::2])), array[::-1, ::2])


def test_files_and_bytes_go_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "any"
    path.write_bytes(b"as it is")
    assert to_bytes(path) == to_bytes(str(path)) == to_bytes(bytearray(b"as it is")) == b"as it is"


def test_a_pillow_image_goes_as_its_pixels_stand() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    buffer = io.BytesIO()
    Image.fromarray(gradient(5, 7, 3)).save(buffer, "PNG", exif=exif)
    given = Image.open(buffer)
    assert given.getexif().get(0x0112) == 6
    png = sent(given)
    assert png.size == (7, 5)
    assert 0x0112 not in png.getexif()
    assert given.getexif().get(0x0112) == 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I"])
def test_every_mode_of_pillow(mode: str) -> None:
    assert sent(Image.new(mode, (6, 4))).size == (6, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        Image.new("F", (6, 4)),
        Path("/nowhere/x.jpg"),
        "https://example.org/x.jpg",
        7,
        None,
    ],
)
def test_what_is_no_image_is_said_so(wrong: Any) -> None:
    with pytest.raises(ImageError):
        to_bytes(wrong)


def test_a_broken_file_opened_with_pillow_is_said_so() -> None:
    buffer = io.BytesIO()
    Image.fromarray(gradient(64, 64, 3)).save(buffer, "JPEG")
    broken = Image.open(io.BytesIO(buffer.getvalue()[: len(buffer.getvalue()) * 3 // 4]))
    with pytest.raises(ImageError, match="cannot be read"):
        to_bytes(broken)
