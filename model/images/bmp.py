"""Windows bitmaps: Pillow decodes them, except run lengths and channel masks, of which it does not take all."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from model.images.errors import BrokenImageError, ImageTooLargeError, UnsupportedImageError
from model.images.opened import OpenedImage, Pixels, pillow_bytes, pillow_image, write_rgb

MAGIC = b"BM"
_CORE_HEADER = 12
_HEADERS = frozenset({_CORE_HEADER, 40, 52, 56, 64, 108, 124})
_RAW, _RLE8, _RLE4, _BITFIELDS, _ALPHA_BITFIELDS = 0, 1, 2, 3, 6
_BITS = {_RAW: {1, 4, 8, 16, 24, 32}, _RLE8: {8}, _RLE4: {4}, _BITFIELDS: {16, 32}, _ALPHA_BITFIELDS: {16, 32}}
# Run lengths are unpacked in Python: a mebibyte of them takes half a second.
_MOST_RLE_PIXELS, _MOST_RLE_BYTES = 2_500_000, 1 << 20


def open_bmp(data: bytes) -> OpenedImage:
    """Read the header.

    Raises:
        BrokenImageError, UnsupportedImageError, ImageTooLargeError
    """
    try:
        start, header_bytes = struct.unpack_from("<II", data, 10)
        if header_bytes == _CORE_HEADER:
            width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
            compression = _RAW
        else:
            width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    except struct.error as error:
        raise BrokenImageError("the BMP image is truncated in its header") from error
    if header_bytes not in _HEADERS or bits not in _BITS.get(compression, set()):
        raise UnsupportedImageError(
            f"BMP images of {bits} bits, compression {compression} and a header of {header_bytes} bytes are not taken"
        )
    if start < 14 + header_bytes and (start or compression != _RAW):  # without a start, Pillow finds plain pixels
        raise BrokenImageError("the BMP image's pixels begin in its header")
    if compression in {_RLE8, _RLE4} and (width * abs(height) > _MOST_RLE_PIXELS or len(data) > _MOST_RLE_BYTES):
        raise ImageTooLargeError(
            f"of run-length encoded BMP images, {_MOST_RLE_PIXELS:,} pixels in {_MOST_RLE_BYTES:,} bytes are taken"
        )

    def write(out: Pixels) -> None:
        if compression in {_BITFIELDS, _ALPHA_BITFIELDS}:
            _write_masked(data[start:], bits, _masks(data), out, bottom_up=height > 0)
        elif compression in {_RLE8, _RLE4}:
            indices = _unpacked(data[start:], bits, width, abs(height))
            out[...] = _palette(data, header_bytes, bits)[indices[::-1] if height > 0 else indices]
        else:
            write_rgb(pillow_image(data, "BMP"), out)

    return OpenedImage(
        format="BMP",
        width=width,
        height=abs(height),
        sample_bytes=(width * bits + 31) // 32 * 4 * abs(height),
        work=width * abs(height),
        working_bytes=pillow_bytes(width * abs(height), 5, len(data)),
        write=write,
    )


def _palette(data: bytes, header_bytes: int, bits: int) -> Pixels:
    """`[256, 3]` RGB; black where the file has no more colours. Its own are blue, green, red and a byte without use."""
    (stated,) = struct.unpack_from("<I", data, 46)
    entries = data[14 + header_bytes :][: 4 * min(stated or 1 << bits, 1 << bits)]
    colors = np.frombuffer(entries.ljust(4 << 8, b"\0"), np.uint8)
    return colors.reshape(-1, 4)[:, 2::-1]


def _unpacked(data: bytes, bits: int, width: int, height: int) -> Pixels:
    """Palette indices `[height, width]` in the order of the file. What the file skips has the index 0."""
    flat = bytearray(width * height)
    rows = np.frombuffer(flat, np.uint8).reshape(height, width)
    at = x = y = 0
    while True:
        count, value = data[at : at + 1], data[at + 1 : at + 2]
        at += 2
        if not value:
            if y < height - 1 or (y == height - 1 and x < width):
                raise BrokenImageError("the BMP image is truncated")
            return rows
        if count != b"\0":
            pair = value if bits == 8 else bytes([value[0] >> 4, value[0] & 15])
            run = (pair * count[0])[: count[0]]
        elif value == b"\0":
            x, y = 0, y + 1
            continue
        elif value == b"\1":
            return rows
        elif value == b"\2":
            steps = data[at : at + 2].ljust(2, b"\0")
            x, y, at = x + steps[0], y + steps[1], at + 2
            continue
        else:  # as they are, filled up to an even number of bytes
            size = value[0] if bits == 8 else (value[0] + 1) // 2
            packed = data[at : at + size]
            run = packed if bits == 8 else bytes(int(digit, 16) for digit in packed.hex())[: value[0]]
            at += size + size % 2
        if y < height:
            run = run[: max(width - x, 0)]
            flat[y * width + x : y * width + x + len(run)] = run
        x += len(run)


def _masks(data: bytes) -> tuple[int, int, int]:
    """Of red, green and blue: behind the 40 bytes that all headers begin with, or part of the longer ones."""
    try:
        red, green, blue = struct.unpack_from("<III", data, 54)
    except struct.error as error:
        raise BrokenImageError("the BMP image is truncated in its header") from error
    for mask in (red, green, blue):
        lowest = mask & -mask
        if mask == 0 or (mask + lowest) & mask:
            raise UnsupportedImageError("BMP images with these channel masks are not taken")
    return red, green, blue


def _write_masked(data: bytes, bits: int, masks: tuple[int, int, int], out: Pixels, *, bottom_up: bool) -> None:
    height, width, _ = out.shape
    stride = (width * bits + 31) // 32 * 4
    if len(data) < stride * height:
        raise BrokenImageError("the BMP image is truncated")
    rows = np.frombuffer(data, np.uint8, stride * height).reshape(height, stride)
    rows = rows[::-1] if bottom_up else rows
    for to, row in zip(out, rows, strict=True):
        packed = row.view("<u2" if bits == 16 else "<u4")[:width]
        for channel, mask in enumerate(masks):
            to[:, channel] = _channel(packed, mask)


def _channel(packed: npt.NDArray[np.unsignedinteger], mask: int) -> npt.NDArray[np.integer]:
    """8 bits of a channel: the upper ones of more, and of fewer the whole range stretched."""
    lowest = (mask & -mask).bit_length() - 1
    bits = mask.bit_length() - lowest
    values = (packed & mask) >> lowest
    return values >> (bits - 8) if bits > 8 else values.astype(np.uint32) * 255 // ((1 << bits) - 1)
