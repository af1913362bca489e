"""What is wrong beside the pixels costs no picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from model.images.decoding import decode
from model.images.errors import ImageError, ImageTooLargeError
from tests.support.image_files import picture, saved, tiff

MOST = 1 << 26
PIXELS = picture()
XMP = (
    b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></x:xmpmeta>'
)


def by_pillow(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def test_xmp_turns_nothing() -> None:
    for image_format in ("WEBP", "TIFF"):
        data = saved(
            PIXELS, image_format, xmp=XMP.split(b"\0", 1)[1], **({"lossless": True} if image_format == "WEBP" else {})
        )
        np.testing.assert_array_equal(decode(data, max_pixels=MOST), PIXELS)


@pytest.mark.parametrize("kind", [3, 4, 7, 1])
def test_metadata_of_a_tiff_of_any_type_cost_no_pixels(kind: int) -> None:
    odd = [(number, kind, [1, 2, 3]) for number in (700, 34665, 34853, 33723, 34377, 34675, 270, 305, 282, 296, 65000)]
    np.testing.assert_array_equal(decode(tiff(PIXELS, (274, 3, [6]), *odd), max_pixels=MOST), np.rot90(PIXELS, -1))


def test_damaged_exif_in_an_avif_costs_no_pixels() -> None:
    exif = Image.Exif()
    exif[0x010F] = "camera"
    data = saved(PIXELS, "AVIF", exif=exif)
    at = data.index(b"II*\0") if b"II*\0" in data else data.index(b"MM\0*")
    damaged = data[:at] + b"junk" + data[at + 4 :]
    np.testing.assert_array_equal(decode(damaged, max_pixels=MOST), by_pillow(data))


def test_sixteen_bits_count_twice() -> None:
    data = saved(np.zeros((100, 100), np.uint16), "TIFF")
    with pytest.raises(ImageTooLargeError):
        decode(data, max_pixels=9_999)
    assert decode(data, max_pixels=10_000).shape == (100, 100, 3)
    deep = tiff(np.zeros((100, 100, 4), "<u2"), (338, 3, [2]), bits=16)
    with pytest.raises(ImageTooLargeError, match="80,000"):
        decode(deep, max_pixels=10_000)
    assert decode(deep, max_pixels=20_000).shape == (100, 100, 3)


def test_messages_quote_nothing_and_have_one_line() -> None:
    for head in (b"", b"\xff\xd8", b"BM", b"II*\0", b"GIF89a", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(ImageError) as caught:
            decode(head + b"secret" + bytes(50), max_pixels=MOST)
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)
