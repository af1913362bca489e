"""GIF89a: the first frame and what it needs is kept, Pillow decodes it."""

from __future__ import annotations

import struct

from model.images.errors import BrokenImageError, ImageTooLargeError
from model.images.opened import OpenedImage, pillow_bytes, pillow_image, write_rgb

MAGICS = (b"GIF87a", b"GIF89a")
_IMAGE, _EXTENSION, _GRAPHIC_CONTROL = 0x2C, 0x21, 0xF9
_MOST_BLOCKS = 500_000  # 32 MiB in blocks of the usual 255 bytes are 131,000
_TRAILER = b"\x3b"


def open_gif(data: bytes) -> OpenedImage:
    """Read up to the end of the first frame.

    Raises:
        BrokenImageError, ImageTooLargeError
    """
    if len(data) < 13:
        raise BrokenImageError("the GIF image is truncated")
    at = 13 + _table_bytes(data[10])
    kept = data[:at]
    blocks = 0
    while data[at : at + 1] == bytes([_EXTENSION]):
        end, blocks = _end_of_blocks(data, at + 2, blocks)
        if data[at + 1 : at + 2] == bytes([_GRAPHIC_CONTROL]):
            kept = kept[: 13 + _table_bytes(data[10])] + data[at:end]
        at = end
    if data[at : at + 1] != bytes([_IMAGE]) or len(data) < at + 10:
        raise BrokenImageError("the GIF image has no frame")
    left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, at + 1)
    end, _ = _end_of_blocks(data, at + 10 + _table_bytes(data[at + 9]) + 1, blocks)
    first_frame = kept + data[at:end] + (_TRAILER if end <= len(data) else b"")
    # A frame that reaches out of the canvas makes it larger in Pillow, and in browsers.
    width = max(int.from_bytes(data[6:8], "little"), left + frame_width)
    height = max(int.from_bytes(data[8:10], "little"), top + frame_height)
    return OpenedImage(
        format="GIF",
        width=width,
        height=height,
        sample_bytes=width * height,
        work=width * height,
        working_bytes=pillow_bytes(width * height, 2, len(data)),
        write=lambda out: write_rgb(pillow_image(first_frame, "GIF"), out),
    )


def _table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _end_of_blocks(data: bytes, at: int, blocks: int) -> tuple[int, int]:
    """Behind the empty block that ends a row of them, and how many blocks there have been."""
    while at < len(data) and data[at]:
        at += 1 + data[at]
        blocks += 1
        if blocks > _MOST_BLOCKS:
            raise ImageTooLargeError(f"the GIF image has more than {_MOST_BLOCKS:,} blocks before its first frame ends")
    return at + 1, blocks
