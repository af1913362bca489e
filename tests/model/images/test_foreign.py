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
        (b"icns" + bytes(40), "an ICNS file"),
        (b"P6\n4 4\n255\n" + bytes(48), "a PNM file"),
        (b"\n\5\1\x08" + bytes(124), "a PCX file"),
        (b"DDS " + bytes(124), "a DDS file"),
        (b"\1\0\0\0" + bytes(36) + b" EMF", "an EMF drawing"),
        (b"%!PS-Adobe-3.0", "a PostScript file"),
        (b"RIFF\0\0\0\0AVI LIST", "a video"),
        (b"\0\0\1\0moov" + bytes(40), "a video"),
        (b"Rar!\x1a\7\0", "a RAR archive"),
        (bytes(257) + b"ustar", "a tar archive"),
        (b"<!-- made by hand --><svg/>", "an HTML page or SVG drawing"),
        (b"/9j/4AAQSkZJRgABAQAAAQABAAD", "base64 of an image, as text"),
        (b"data:image/png;base64,iVBORw0KGgo", "a data: URL, as text"),
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
