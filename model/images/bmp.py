"""Windows bitmaps: the header is checked here, Pillow decodes, except files with rare channel masks."""

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
# Pillow decodes RLE in Python, at about a microsecond a pixel and two a byte.
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
    if compression in {_RLE8, _RLE4} and (width * abs(height) > _MOST_RLE_PIXELS or len(data) > _MOST_RLE_BYTES):
        raise ImageTooLargeError(
            f"of run-length encoded BMP images, {_MOST_RLE_PIXELS:,} pixels in {_MOST_RLE_BYTES:,} bytes are taken"
        )

    def write(out: Pixels) -> None:
        if compression in {_BITFIELDS, _ALPHA_BITFIELDS}:
            _write_masked(data[start:], bits, _masks(data), out, bottom_up=height > 0)
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
