from __future__ import annotations

import io
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from model.images import jpeg
from model.images.decoding import decode
from model.images.errors import BrokenImageError, UnsupportedImageError
from tests.support.image_files import given_memory, picture, saved, segment


def photograph(size_wh: tuple[int, int] = (203, 101), **options: Any) -> bytes:
    smooth = Image.effect_noise((20, 10), 90).convert("RGB").resize(size_wh, Image.Resampling.BICUBIC)
    out = io.BytesIO()
    smooth.save(out, "JPEG", **options)
    return out.getvalue()


@pytest.mark.parametrize("options", [{"subsampling": n} for n in range(3)] + [{"progressive": True}, {"quality": 5}])
def test_a_jpeg_has_the_pixels_that_pillow_sees(options: dict[str, Any]) -> None:
    data = photograph(**options)
    wanted = np.array(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode(data, max_pixels=10**6), wanted)


def damaged_in_the_middle() -> bytes:
    data = photograph()
    return data[:-400] + bytes(200) + data[-200:]


def test_a_damaged_jpeg_has_the_pixels_that_pillow_sees() -> None:
    damaged = damaged_in_the_middle()
    wanted = np.array(Image.open(io.BytesIO(damaged)))
    assert np.array_equal(decode(damaged, max_pixels=10**6), wanted)


@pytest.mark.parametrize("checked_hw", [(51, 100), (49, 100), (50, 99), (100, 50)])
def test_a_jpeg_of_two_sizes_is_not_decoded_beyond_the_one_that_was_checked(checked_hw: tuple[int, int]) -> None:
    data = photograph((100, 50))
    image = jpeg.open_jpeg(data)
    with pytest.raises(BrokenImageError, match="two sizes"):
        image.write(np.empty((*checked_hw, 3), np.uint8))


def test_a_damaged_jpeg_is_decoded_into_the_same_memory_a_second_time() -> None:
    picture, given = given_memory(damaged_in_the_middle())
    assert len(given) == 1
    assert np.shares_memory(picture, given[0])


MOST = 1 << 26
PIXELS = picture()
JPEG = saved(PIXELS, "JPEG", quality=90)
PROGRESSIVE = saved(PIXELS, "JPEG", quality=90, progressive=True)
GREY = saved(Image.fromarray(PIXELS).convert("L"), "JPEG")
CMYK = saved(Image.fromarray(PIXELS).convert("CMYK"), "JPEG")
XMP = (
    b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></x:xmpmeta>'
)


def by_pillow(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, GREY, CMYK], ids=["colour", "progressive", "grey", "CMYK"])
@pytest.mark.parametrize("ending", [b"", b"\xff", b"\xff\xff\xff", b"\xff\xd9junk"])
def test_an_end_marker_is_not_needed(data: bytes, ending: bytes) -> None:
    np.testing.assert_array_equal(decode(data[:-2] + ending, max_pixels=MOST), by_pillow(data))


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, GREY], ids=["colour", "progressive", "grey"])
@pytest.mark.parametrize(
    "padding", [bytes(3000), b"\r\n", b"\n", b"\xff" + bytes(7)], ids=lambda padding: f"{padding[:2]!r}"
)
def test_padding_may_stand_in_place_of_an_end_marker(data: bytes, padding: bytes) -> None:
    np.testing.assert_array_equal(decode(data[:-2] + padding, max_pixels=MOST), by_pillow(data))
    with pytest.raises(BrokenImageError):  # all but the last scan: padding is no pixels
        decode(PROGRESSIVE[: PROGRESSIVE.rindex(b"\xff\xda")] + padding, max_pixels=MOST)


def test_a_last_byte_that_looks_like_padding_is_kept() -> None:
    """A scan may end with 0xFF, which a zero follows."""
    seen = 0
    for seed in range(200):
        noise = np.random.default_rng(seed).integers(0, 256, (16, 16), np.uint8)
        data = saved(Image.fromarray(noise), "JPEG", quality=90, progressive=True)
        if not data.endswith((b"\xff\0\xff\xd9", b"\r\xff\xd9")):
            continue
        seen += data.endswith(b"\xff\0\xff\xd9")
        for padding in (b"", *([bytes(9)] if data[-3] == 0 else [])):
            np.testing.assert_array_equal(decode(data[:-2] + padding, max_pixels=MOST), by_pillow(data))
    assert seen


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, GREY], ids=["colour", "progressive", "grey"])
def test_the_next_image_of_a_stream_ends_one_without_an_end_marker(data: bytes) -> None:
    np.testing.assert_array_equal(decode(data[:-2] + JPEG, max_pixels=MOST), by_pillow(data))
    with pytest.raises(BrokenImageError):
        decode(data[:-40] + JPEG, max_pixels=MOST)


def test_text_between_the_images_of_a_stream_costs_no_pixels() -> None:
    text = b"\r\n--boundary\r\nContent-Type: image/jpeg\r\n\r\n"
    np.testing.assert_array_equal(decode(JPEG[:-2] + text + JPEG, max_pixels=MOST), by_pillow(JPEG))


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, GREY, CMYK], ids=["colour", "progressive", "grey", "CMYK"])
def test_what_is_cut_is_broken_at_whichever_byte(data: bytes) -> None:
    """A few last bytes may hold nothing but bits that fill."""
    for end in range(0, len(data) - 8, 7):
        with pytest.raises(BrokenImageError):
            decode(data[:end], max_pixels=MOST)


def test_a_progressive_file_without_its_last_scans_is_broken() -> None:
    marks = [at for at in range(len(PROGRESSIVE)) if PROGRESSIVE[at : at + 2] == b"\xff\xda"]
    assert len(marks) == 10
    for at in marks[1:]:
        tables = PROGRESSIVE.rindex(b"\xff\xc4", 0, at)  # what the scan needs lies before it
        for end in (at, tables):
            with pytest.raises(BrokenImageError):
                decode(PROGRESSIVE[:end], max_pixels=MOST)


def behind_the_first(data: bytes, part: bytes) -> bytes:
    """The part behind the first segment of a JPEG."""
    at = 4 + int.from_bytes(data[4:6])
    return data[:at] + part + data[at:]


@pytest.mark.parametrize("fill", [4_000, 20_000, 1_000_000])
def test_fill_bytes_are_no_parts(fill: int) -> None:
    for data in (JPEG, PROGRESSIVE, CMYK):
        filled = behind_the_first(data, b"\xff" * fill)
        np.testing.assert_array_equal(decode(filled, max_pixels=MOST), by_pillow(data))


@pytest.mark.parametrize(
    "part",
    [
        segment(0xE0, b"JFIF\0\1"),
        segment(0xE0, b"JFXX"),
        segment(0xE1, b"Exif\0\0"),
        segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"),
        segment(0xE1, XMP),
        segment(0xE2, b"MPF\0"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"FPXR\0"),
        segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0"),
        segment(0xEE, b"Adobe"),
        segment(0xEE, b"Adobe\0"),
        segment(0xFE, b""),
        segment(0xFE, b"", length=0),
    ],
    ids=lambda part: f"{part[1]:02X} {part[4:12]!r} {len(part)}",
)
@pytest.mark.parametrize("data", [JPEG, GREY, CMYK], ids=["colour", "grey", "CMYK"])
def test_metadata_of_a_jpeg_costs_no_pixels(data: bytes, part: bytes) -> None:
    wanted = by_pillow(data)
    np.testing.assert_array_equal(decode(behind_the_first(data, part), max_pixels=MOST), wanted)
    damaged = data[: len(data) // 2] + bytes(9) + data[len(data) // 2 + 9 :]  # goes to Pillow
    np.testing.assert_array_equal(
        decode(behind_the_first(damaged, part), max_pixels=MOST), decode(damaged, max_pixels=MOST)
    )


def test_of_two_exif_segments_the_first_counts() -> None:
    exif = Image.Exif()
    turned = []
    for orientation in (1, 6, 3):
        exif[0x0112] = orientation
        turned.append(segment(0xE1, exif.tobytes()))
    plain = decode(JPEG, max_pixels=MOST)
    np.testing.assert_array_equal(decode(JPEG[:2] + turned[0] + turned[1] + JPEG[2:], max_pixels=MOST), plain)
    both = decode(JPEG[:2] + turned[1] + turned[2] + JPEG[2:], max_pixels=MOST)
    np.testing.assert_array_equal(both, np.rot90(plain, -1))


def test_jpeg_ls_is_named() -> None:
    with pytest.raises(UnsupportedImageError, match="JPEG-LS"):
        decode(bytes(imagecodecs.jpegls_encode(np.zeros((8, 8), np.uint8))), max_pixels=MOST)
