from __future__ import annotations

import pytest

from model.images.decoding import decode
from model.images.errors import UnsupportedImageError

MOST = 1 << 26


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC file"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "a HEIC file"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp41", "a video"),
        (b"\0\0\0\x18ftypcrx \0\0\0\0crx isom", "a camera raw file"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(100), "a camera raw file"),
        (b"\n <svg xmlns='a'/>", "an SVG drawing"),
        (bytes(128) + b"DICM", "a DICOM file"),
    ],
)
def test_files_of_other_kinds_are_named(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedImageError, match=name):
        decode(data, max_pixels=MOST)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"%PDF-1.7 ...", "a PDF"),
        (b"\x00\x00\x01\x00\x01\x00", "an ICO file"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00", "a HEIC file"),
    ],
)
def test_images_of_other_kinds_are_named(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedImageError, match=f"this is {name}; accepted are JPEG, PNG"):
        decode(data, max_pixels=MOST)
