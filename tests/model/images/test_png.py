"""PNG layouts: every depth, colour type and interlace has the samples that were written, as imagecodecs sees them."""

from __future__ import annotations

import itertools
import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
import pytest

from model.images.decoding import decode
from tests.support.image_files import chunk

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
