from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from model.images.decoding import decode
from model.images.errors import BrokenImageError, UnsupportedImageError
from tests.support.image_files import picture

PIXELS = picture(15, 21)


def masked(
    masks: tuple[int, int, int], packed: np.ndarray, *, bits: int, header: int = 40, top_down: bool = False
) -> bytes:
    """A bitmap of 16 or 32 bits a pixel with masks for the channels."""
    height, width = packed.shape
    rows = packed if top_down else packed[::-1]
    padding = -(width * bits // 8) % 4
    body = b"".join(row.astype(f"<u{bits // 8}").tobytes() + bytes(padding) for row in rows)
    start = 14 + max(header, 40 + 12)
    info = struct.pack(
        "<IiiHHIIiiII", header, width, -height if top_down else height, 1, bits, 3, len(body), 0, 0, 0, 0
    )
    info = (info + struct.pack("<III", *masks)).ljust(start - 14, b"\0")
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + info + body


def packed_by(shifts: tuple[int, int, int], bits: tuple[int, int, int]) -> np.ndarray:
    """Each channel's upper bits, shifted to their place."""
    wide = PIXELS.astype(np.uint32)
    packed = np.zeros_like(wide[..., 0])
    for i in range(3):
        packed |= ((wide[..., i] << 8 | wide[..., i]) >> (16 - bits[i])) << shifts[i]
    return packed


@pytest.mark.parametrize("header", [40, 52, 56, 108, 124])
@pytest.mark.parametrize("top_down", [False, True])
def test_masks_in_any_order(header: int, top_down: bool) -> None:
    for shifts in ((16, 8, 0), (0, 8, 16), (24, 16, 8), (8, 0, 24)):
        masks = (0xFF << shifts[0], 0xFF << shifts[1], 0xFF << shifts[2])
        data = masked(masks, packed_by(shifts, (8, 8, 8)), bits=32, header=header, top_down=top_down)
        np.testing.assert_array_equal(decode(data, max_pixels=10**6), PIXELS)


def test_ten_bits_a_channel_keep_their_upper_eight() -> None:
    data = masked((0x3FF00000, 0xFFC00, 0x3FF), packed_by((20, 10, 0), (10, 10, 10)), bits=32)
    np.testing.assert_array_equal(decode(data, max_pixels=10**6), PIXELS)


@pytest.mark.parametrize(
    ("masks", "shifts", "bits"),
    [((0xF800, 0x7E0, 0x1F), (11, 5, 0), (5, 6, 5)), ((0x7C00, 0x3E0, 0x1F), (10, 5, 0), (5, 5, 5))],
)
def test_sixteen_bits_have_the_pixels_that_pillow_sees(
    masks: tuple[int, int, int], shifts: tuple[int, int, int], bits: tuple[int, int, int]
) -> None:
    data = masked(masks, packed_by(shifts, bits), bits=16)
    np.testing.assert_array_equal(decode(data, max_pixels=10**6), np.array(Image.open(io.BytesIO(data)).convert("RGB")))


def test_four_bits_a_channel_span_the_whole_range() -> None:
    data = masked((0xF00, 0xF0, 0xF), np.array([[0xF0F, 0x0F0]], np.uint16), bits=16)
    assert decode(data, max_pixels=100).tolist() == [[[255, 0, 255], [0, 255, 0]]]


@pytest.mark.parametrize("masks", [(0, 0xFF00, 0xFF), (0xF0F0, 0xF00, 0xF)])
def test_masks_without_sense_are_named(masks: tuple[int, int, int]) -> None:
    with pytest.raises(UnsupportedImageError, match="masks"):
        decode(masked(masks, np.zeros((2, 2), np.uint32), bits=32), max_pixels=100)


def test_a_bitmap_that_is_cut_is_broken() -> None:
    data = masked((0xFF0000, 0xFF00, 0xFF), packed_by((16, 8, 0), (8, 8, 8)), bits=32)
    for end in (12, 20, 50, 60, len(data) - 1):
        with pytest.raises(BrokenImageError):
            decode(data[:end], max_pixels=10**6)


@pytest.mark.parametrize(("bits", "compression"), [(24, 4), (0, 5), (2, 0), (8, 3), (64, 0)])
def test_other_bitmaps_are_named(bits: int, compression: int) -> None:
    info = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, bits, compression, 0, 0, 0, 0, 0)
    with pytest.raises(UnsupportedImageError, match=f"BMP images of {bits} bits"):
        decode(b"BM" + struct.pack("<IHHI", 0, 0, 0, 54) + info + bytes(100), max_pixels=100)
