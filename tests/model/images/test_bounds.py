from __future__ import annotations

import contextlib
import io
import struct
import time
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.images.decoding import decode, open_image
from model.images.errors import ImageError, ImageTooLargeError


def file(image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).save(buffer, image_format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def jpeg_with(parts: bytes) -> bytes:
    whole = file("JPEG")
    return whole[:2] + parts + whole[2:]


def png_with(parts: bytes, *, last: bool = False) -> bytes:
    whole = file("PNG")
    at = len(whole) - 12 if last else 33  # before the end, or behind the header
    return whole[:at] + parts + whole[at:]


def progressive_with(scans: int) -> bytes:
    """The last scan of a progressive file, so often."""
    whole = file("JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * scans + b"\xff\xd9"


PROFILE = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(900_000)))


@pytest.mark.parametrize(
    "data",
    [
        progressive_with(200),
        jpeg_with(b"\xff\xe5\x00\x02" * 20_000),
        jpeg_with(b"\xff\xfe\x00\x00" * 20_000),
        png_with(chunk(b"abCd") * 20_000),
        png_with(chunk(b"abCd") * 20_000, last=True),
        png_with(chunk(b"IDAT") * 200_000, last=True),
    ],
    ids=lambda data: f"{data[1:4]!r} {len(data)}",
)
def test_a_file_of_endless_parts_is_refused_before_it_is_walked(data: bytes) -> None:
    with pytest.raises(ImageTooLargeError, match=r"too many|more than"):
        decode(data, max_pixels=10_000)


@pytest.mark.parametrize(
    "data",
    [
        file("JPEG"),
        progressive_with(20),
        jpeg_with(b"\xff\xe2\x00\x10ICC_PROFILE\x00\x01\x01" * 255),
        jpeg_with(b"\xff\xfe\xff\xff" + bytes(65533)),
        jpeg_with(b"\xff\xff\xff"),
        file("JPEG") + b"\xff\xda" * 10_000,  # a phone's video behind its photograph
        file("PNG") + bytes(1_000_000),
        png_with(PROFILE),
        png_with(chunk(b"tEXt", b"a\0b") * 500),
        file("PNG", compress_level=0),
        jpeg_with(b"\xff" * 20_000),
        jpeg_with(b"\x00" * 20_000),
        jpeg_with(b"\xff\x00" * 20_000),
        png_with(PROFILE * 2),
        png_with(PROFILE + chunk(b"abCd") + PROFILE, last=True),
        file("GIF"),
        file("WEBP"),
    ],
    ids=lambda data: f"{data[1:4]!r} {len(data)}",
)
def test_files_as_they_are_pass(data: bytes) -> None:
    assert decode(data, max_pixels=10_000).shape[:2] == (64, 64)


@pytest.mark.parametrize("head", [b"\xff\xd8", b"\x89PNG\r\n\x1a\n"])
@given(rest=st.binary(max_size=200), times=st.integers(1, 5000))
def test_whatever_the_bytes_it_ends_soon(head: bytes, rest: bytes, times: int) -> None:
    started = time.monotonic()
    with contextlib.suppress(ImageError):
        open_image(head + rest * times, max_pixels=10_000)
    assert time.monotonic() - started < 5


def test_scans_cannot_hide_behind_an_end_that_is_none() -> None:
    comment = b"\xff\xfe\x00\x04\xff\xd9"
    data = progressive_with(200)
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff\xda", first + 2)
    with pytest.raises(ImageTooLargeError, match="scans"):
        open_image(data[:second] + comment + data[second:], max_pixels=10_000)


def test_photographs_pass(coco_photos: Any) -> None:
    for path in coco_photos:
        open_image(path.read_bytes(), max_pixels=10**7)
