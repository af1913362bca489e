"""PNG layouts: every depth, colour type and interlace has the samples that were written, as imagecodecs sees them."""

from __future__ import annotations

import itertools
import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from model.images.decoding import decode
from model.images.errors import BrokenImageError, UnsupportedImageError
from tests.support.image_files import chunk, picture, saved

MOST = 1 << 20
HEIGHT, WIDTH = 13, 19  # no multiple of the eight rows and columns of an interlaced block
Array = np.ndarray[Any, Any]
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}
KINDS = [(color_type, bits) for color_type, depths in DEPTHS.items() for bits in depths]
# First column, first row, step of columns, step of rows (PNG, third edition, section 8.1).
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def rows_of(samples: Array, bits: int, row_filter: int) -> bytes:
    """Packed rows, each behind its filter: none, or the difference from the row above."""
    if samples.size == 0:
        return b""
    flat = samples.reshape(len(samples), -1)
    if bits == 16:
        packed = flat.astype(">u2").view(np.uint8)
    else:
        each = np.unpackbits(flat.astype(np.uint8)[..., None], axis=2)[:, :, 8 - bits :]
        packed = np.packbits(each.reshape(len(flat), -1), axis=1)
    if row_filter == 2:
        packed = np.diff(packed, axis=0, prepend=np.zeros((1, packed.shape[1]), np.uint8))
    return b"".join(bytes([row_filter]) + row.tobytes() for row in packed)


def png(samples: Array, color_type: int, bits: int, *parts: bytes, interlaced: bool, row_filter: int = 0) -> bytes:
    """A PNG of samples `[H, W, S]`, with `parts` between the header and the pixels."""
    height, width = samples.shape[:2]
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    raw = b"".join(rows_of(samples[y::dy, x::dx], bits, row_filter) for x, y, dx, dy in passes)
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, int(interlaced))
    content = zlib.compress(raw)
    pixels = [chunk(b"IDAT", content[:20]), chunk(b"IDAT", content[20:])]
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *parts, *pixels, chunk(b"IEND", b"")])


def rgb_of(samples: Array, color_type: int, bits: int, colors: Array) -> Array:
    """What the samples look like in 8 bits, without alpha."""
    if color_type == PALETTE:
        return colors[samples[..., 0]]
    eight = (samples >> (bits - 8) if bits >= 8 else samples * 255 // ((1 << bits) - 1)).astype(np.uint8)
    return eight[..., :3] if color_type in {RGB, RGB_ALPHA} else np.repeat(eight[..., :1], 3, axis=-1)


@pytest.mark.parametrize(("color_type", "bits"), KINDS)
def test_a_layout_has_the_right_pixels(color_type: int, bits: int) -> None:
    dice = np.random.default_rng(bits)
    samples = dice.integers(0, 1 << bits, (HEIGHT, WIDTH, SAMPLES[color_type]))
    colors = dice.integers(0, 256, (1 << min(bits, 8), 3)).astype(np.uint8)
    transparent = {
        GREY: samples[0, 0].astype(">u2").tobytes(),
        RGB: samples[0, 0].astype(">u2").tobytes(),
        PALETTE: b"\x00\x80",
    }.get(color_type)
    wanted = rgb_of(samples, color_type, bits, colors)
    palette = [chunk(b"PLTE", colors.tobytes())] if color_type == PALETTE else []
    for interlaced, row_filter, with_transparency in itertools.product((False, True), (0, 2), (False, True)):
        if with_transparency and transparent is None:
            continue
        parts = [*palette, *([chunk(b"tRNS", transparent)] if with_transparency and transparent else [])]
        data = png(samples, color_type, bits, *parts, interlaced=interlaced, row_filter=row_filter)
        np.testing.assert_array_equal(decode(data, max_pixels=MOST), wanted)
        # An independent decoder reads the same file, so that a mistake of the writer above would show.
        theirs = np.asarray(imagecodecs.png_decode(data)).reshape(HEIGHT, WIDTH, -1)
        if bits == 16:
            theirs = theirs >> 8
        shown = theirs[..., :3] if theirs.shape[-1] >= 3 else np.repeat(theirs[..., :1], 3, axis=-1)
        np.testing.assert_array_equal(shown, wanted)


PIXELS = picture()
PNG = saved(PIXELS, "PNG")
NOISE = np.random.default_rng(0).integers(0, 255, 1_200_000, dtype=np.uint8).tobytes()


def early(*chunks: bytes) -> bytes:
    return PNG[:33] + b"".join(chunks) + PNG[33:]


def late(*chunks: bytes) -> bytes:
    return PNG[:-12] + b"".join(chunks) + PNG[-12:]


@pytest.mark.parametrize(
    "data",
    [
        early(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 2_000_000))),
        early(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b" " * 1_500_000))),
        early(chunk(b"iCCP", b"ICC\0\0" + zlib.compress(NOISE))),
        early(chunk(b"iCCP", b"ICC\0\0" + zlib.compress(b"x"), crc=1)),
        early(chunk(b"iCCP", b"ICC\0\x07junk")),
        early(chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1), crc=1)),
        early(chunk(b"tEXt", b"Software\0x", crc=1)),
        early(chunk(b"pHYs", b"\0\0\x0b")),
        early(chunk(b"cHRM", b"\0" * 5)),
        early(chunk(b"gAMA", b"")),
        early(chunk(b"sRGB", b"")),
        early(chunk(b"tRNS", b"\0")),
        early(chunk(b"bKGD", b"")),
        early(chunk(b"acTL", b"\0")),
        early(chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff")),
        early(chunk(b"PLTE", b"\0\0")),  # a suggestion, in a picture that has colours
        early(chunk(b"quIt", bytes(2_000_000))),
        late(chunk(b"zTXt", b"Comment\0\x78" + zlib.compress(b"hello"))),
        late(chunk(b"cHRM", b"\0" * 5)),
        late(chunk(b"tEXt", b"a\0b", crc=7)),
        PNG[:-12],
        PNG[:-12] + b"\0\0\0\0IEND\0\0\0\0",
        PNG[:-12] + chunk(b"tEXt", b"a\0" + bytes(100))[:-50],
        PNG[:-16],  # without the checksum of the last pixels
        PNG[:-18],  # and half of that which zlib adds
    ],
    ids=lambda data: f"{data[37:41]!r} {data[-20:-12]!r} {len(data)}",
)
def test_pixels_of_a_png_decide(data: bytes) -> None:
    np.testing.assert_array_equal(decode(data, max_pixels=MOST), PIXELS)


@pytest.mark.parametrize("end", [-60, -200, 60])
def test_a_png_without_its_last_pixels_is_broken(end: int) -> None:
    with pytest.raises(BrokenImageError):
        decode(PNG[:end], max_pixels=MOST)


def test_pixels_whose_checksum_is_wrong_are_broken() -> None:
    at = PNG.index(b"IDAT") + 40
    with pytest.raises(BrokenImageError):
        decode(PNG[:at] + bytes([PNG[at] ^ 1]) + PNG[at + 1 :], max_pixels=MOST)


def test_a_png_of_a_palette_that_is_not_there_is_broken() -> None:
    data = saved(Image.fromarray(PIXELS).quantize(8), "PNG")
    at = data.index(b"PLTE") - 4
    without = data[:at] + data[at + 12 + int.from_bytes(data[at : at + 4]) :]
    with pytest.raises(BrokenImageError, match="palette"):
        decode(without, max_pixels=MOST)


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "LA", "RGBA", "1"])
def test_transparency_is_dropped_and_the_colours_stay(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    plain = saved(image, "PNG")
    key = {"P": bytes([0, 99]), "L": b"\0\7", "RGB": b"\0\1\0\2\0\3"}.get(mode, b"")
    at = plain.index(b"IDAT") - 4
    data = plain[:at] + (chunk(b"tRNS", key) if key else b"") + plain[at:]
    alpha_dropped = image.convert("RGBA").convert("RGB") if mode == "P" else image.convert("RGB")
    np.testing.assert_array_equal(decode(data, max_pixels=MOST), np.array(alpha_dropped))


def test_xcode_s_png_is_named() -> None:
    with pytest.raises(UnsupportedImageError, match="CgBI"):
        decode(PNG[:8] + chunk(b"CgBI", bytes(4)) + PNG[8:], max_pixels=MOST)


def test_exif_in_a_png_turns_it_wherever_it_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    for data in (early(chunk(b"eXIf", content)), late(chunk(b"eXIf", content))):
        np.testing.assert_array_equal(decode(data, max_pixels=MOST), np.rot90(PIXELS, -1))
