from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from model.images.decoding import decode
from model.images.errors import BrokenImageError
from model.images.gif import open_gif
from tests.support.image_files import picture

MOST = 1 << 20
FRAMES = [Image.fromarray(picture(24, 40)).quantize(16), Image.fromarray(255 - picture(24, 40)).quantize(16)]


def gif(frames: list[Image.Image], **options: object) -> bytes:
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], **options)
    return out.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def test_only_the_first_frame_is_read() -> None:
    both, one = gif(FRAMES, duration=100, loop=0, comment=b"c" * 1000), gif(FRAMES[:1])
    np.testing.assert_array_equal(decode(both, max_pixels=MOST), by_pillow(one))
    np.testing.assert_array_equal(decode(both[:-60], max_pixels=MOST), by_pillow(one))  # cut in the second


def test_a_transparent_colour_keeps_its_colour() -> None:
    data = gif(FRAMES[:1], transparency=3)
    np.testing.assert_array_equal(decode(data, max_pixels=MOST), by_pillow(gif(FRAMES[:1])))


def test_a_frame_beyond_its_canvas_makes_the_picture_larger() -> None:
    data = bytearray(gif(FRAMES[:1]))
    data[6:10] = (10).to_bytes(2, "little") * 2
    opened = open_gif(bytes(data))
    assert (opened.width, opened.height) == (40, 24)
    assert decode(bytes(data), max_pixels=MOST).shape == (24, 40, 3)


@pytest.mark.parametrize("end", [0, 6, 12, 13, 30])
def test_a_file_without_a_frame_is_broken(end: int) -> None:
    with pytest.raises(BrokenImageError):
        open_gif(gif(FRAMES[:1])[:end])
