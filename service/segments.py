"""The parts of an image file, counted before anybody walks them.

A file of a few megabytes can have millions of empty parts before its pixels, or hundreds of scans over them, and keep a
decoder busy for minutes whatever its picture's size. Real files have a few dozen parts.
"""

from __future__ import annotations

import re

from service.errors import TooLargeError

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_SCAN, _END = 0xDA, 0xD9
_WITHOUT_LENGTH = frozenset({0x01, 0xD8, _END})
# Not 0 and not 0xD0 to 0xD7, which pixels may have after 0xFF, and not 0xFF, which fills.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)

# A colour profile and a depth map in pieces take 500. At 10 microseconds each, this is a tenth of a second.
_MOST_PARTS = 10_000
_MOST_PIXEL_CHUNKS = 100_000  # 32 MiB in the smallest pieces that encoders are seen to write
_MOST_SCANS = 100  # encoders write 10; libtiff draws the line here too


def refuse_endless(data: bytes) -> None:
    """Let a file pass that can be walked in good time.

    Raises:
        TooLargeError: it has too many parts.
    """
    if data.startswith(_JPEG):
        _refuse_endless_jpeg(data)
    elif data.startswith(_PNG):
        _refuse_endless_png(data)


def _refuse_endless_jpeg(data: bytes) -> None:
    parts, scans, at = 0, 0, len(_JPEG)
    while found := _MARKER.search(data, at):
        start, kind = found.start(), data[found.start() + 1]
        if kind == _END and scans:
            return  # phones append whole videos
        # Before the pixels Pillow walks what lies between parts byte by byte; after, it is the pixels.
        parts += 1 if scans else 1 + start - at
        scans += kind == _SCAN
        if parts > _MOST_PARTS:
            raise TooLargeError(f"the JPEG image has more than {_MOST_PARTS:,} parts")
        if scans > _MOST_SCANS:
            raise TooLargeError(f"the JPEG image has more than {_MOST_SCANS} scans")
        at = start + 2
        if kind not in _WITHOUT_LENGTH:
            at += max(int.from_bytes(data[at : at + 2]), 2)


def _refuse_endless_png(data: bytes) -> None:
    profiles, parts, pixel_chunks, at = 0, 0, 0, len(_PNG)
    while at < len(data):
        kind = data[at + 4 : at + 8]
        if kind == b"IEND":
            return
        pixel_chunks += kind == b"IDAT"
        parts += kind != b"IDAT"
        profiles += kind == b"iCCP"  # each may unpack to a thousand times its size, and one is all there may be
        if profiles > 1 or parts > _MOST_PARTS or pixel_chunks > _MOST_PIXEL_CHUNKS:
            raise TooLargeError("the PNG image has too many parts, or more than one colour profile")
        at += 12 + int.from_bytes(data[at : at + 4])
