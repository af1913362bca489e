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


COLORS = np.random.default_rng(0).integers(0, 256, (16, 3)).astype(np.uint8)
END_OF_LINE, END = b"\0\0", b"\0\1"


def run_lengths(rows: bytes, *, bits: int, width: int, height: int, header: int = 40, colors: int = 0) -> bytes:
    """A run-length encoded bitmap with the first 16 colours of its palette."""
    palette = np.pad(COLORS[:, ::-1], ((0, 0), (0, 1))).tobytes()
    info = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, 3 - bits // 4, len(rows), 0, 0, colors, 0)
    start = 14 + header + len(palette)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, start) + info.ljust(header, b"\0") + palette + rows


@pytest.mark.parametrize(
    ("bits", "rows", "indices"),
    [
        (8, b"\3\5\1\6" + END_OF_LINE + b"\4\7" + END, [[7, 7, 7, 7], [5, 5, 5, 6]]),
        (8, b"\0\3\1\2\3\0\1\4" + END_OF_LINE + b"\0\4\5\6\7\x08", [[5, 6, 7, 8], [1, 2, 3, 4]]),
        (8, b"\4\5" + END, [[0, 0, 0, 0], [5, 5, 5, 5]]),  # the rest is left out
        (8, b"\1\5" + END_OF_LINE + b"\2\6" + END, [[6, 6, 0, 0], [5, 0, 0, 0]]),
        (8, b"\1\5\0\2\1\1\1\6" + END, [[0, 0, 6, 0], [5, 0, 0, 0]]),  # a step to the right and up
        (8, b"\x09\5" + END_OF_LINE + b"\4\6" + END_OF_LINE + b"\4\7" + END, [[6] * 4, [5] * 4]),
        (4, b"\4\x12" + END_OF_LINE + b"\3\x34\1\x50" + END, [[3, 4, 3, 5], [1, 2, 1, 2]]),
        (4, b"\0\3\x12\x30\1\x40" + END_OF_LINE + b"\0\4\x56\x78" + END, [[5, 6, 7, 8], [1, 2, 3, 4]]),
        (4, b"\1\x50\0\2\1\1\2\x67" + END, [[0, 0, 6, 7], [5, 0, 0, 0]]),
    ],
)
@pytest.mark.parametrize("header", [40, 64, 108, 124])
def test_run_lengths_and_what_they_skip(bits: int, rows: bytes, indices: list[list[int]], header: int) -> None:
    data = run_lengths(rows, bits=bits, width=4, height=2, header=header)
    np.testing.assert_array_equal(decode(data, max_pixels=100), COLORS[np.array(indices)])
    top_down = data[:22] + struct.pack("<i", -2) + data[26:]
    np.testing.assert_array_equal(decode(top_down, max_pixels=100), COLORS[np.array(indices)][::-1])


def test_an_index_beyond_the_palette_is_black() -> None:
    data = run_lengths(b"\2\1\2\3" + END, bits=8, width=4, height=1, colors=3)
    assert decode(data, max_pixels=100).tolist() == [[COLORS[1].tolist()] * 2 + [[0, 0, 0]] * 2]


def test_run_lengths_that_end_before_the_last_pixel_are_broken() -> None:
    data = run_lengths(b"\4\5" + END_OF_LINE + b"\0\4\5\6\7\x08", bits=8, width=4, height=2)
    for end in range(len(data) - 10, len(data)):
        with pytest.raises(BrokenImageError):
            decode(data[:end], max_pixels=100)


@pytest.mark.parametrize("start", [0, 14, 53])
def test_pixels_do_not_begin_in_the_header(start: int) -> None:
    data = masked((0xFF0000, 0xFF00, 0xFF), packed_by((16, 8, 0), (8, 8, 8)), bits=32)
    with pytest.raises(BrokenImageError, match="header"):
        decode(data[:10] + struct.pack("<I", start) + data[14:], max_pixels=10**6)
