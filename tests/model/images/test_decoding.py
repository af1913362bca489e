from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from model.images.decoding import decode
from model.images.errors import BrokenImageError, ImageError, ImageTooLargeError, UnsupportedImageError
from tests.support.image_files import given_memory

MAX_PIXELS = 8192 * 8192


def photo(size_wh: tuple[int, int] = (24, 16)) -> Image.Image:
    """A smooth colour picture with no symmetry."""
    width, height = size_wh
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack((x, y, 255 - x), axis=-1).astype(np.uint8))


def file(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def as_decoded(data: bytes) -> np.ndarray[Any, Any]:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(
    ("mode", "image_format", "options"),
    [
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("L", "PNG", {}),
        ("1", "PNG", {}),
        ("LA", "PNG", {}),
        ("P", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("RGB", "WEBP", {"lossless": True}),
        ("RGBA", "WEBP", {}),
        ("P", "GIF", {}),
        ("RGB", "BMP", {}),
        ("RGB", "TIFF", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("CMYK", "TIFF", {}),
        pytest.param("RGB", "AVIF", {}, marks=pytest.mark.skipif(not features.check("avif"), reason="no AVIF")),
    ],
)
def test_kinds_of_images_become_8_bit_rgb(mode: str, image_format: str, options: dict[str, Any]) -> None:
    data = file(photo().convert(mode), image_format, **options)
    picture = decode(data, max_pixels=MAX_PIXELS)
    assert picture.shape[:2] == (16, 24)
    assert picture.flags.c_contiguous
    np.testing.assert_array_equal(picture, as_decoded(data))


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_upper_bits(image_format: str) -> None:
    values = np.array([[0, 255, 256], [32768, 65280, 65535]], dtype=np.uint16)
    picture = decode(file(Image.fromarray(values), image_format), max_pixels=MAX_PIXELS)
    np.testing.assert_array_equal(picture[..., 1], [[0, 0, 1], [128, 255, 255]])


def test_a_palette_with_transparency_keeps_its_colours() -> None:
    image = photo().quantize(8)
    data = file(image, "PNG", transparency=bytes([0, 128, 255, 255, 0, 9, 7, 3]))
    np.testing.assert_array_equal(decode(data, max_pixels=MAX_PIXELS), np.array(image.convert("RGB")))


def test_an_interlaced_png() -> None:
    # Pillow does not write these: two grey pixels side by side, Adam7, so pass 1 holds the first and pass 6 the second.
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 8, 0, 0, 0, 1)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0\x0a\0\xc8"))
        + chunk(b"IEND", b"")
    )
    assert decode(data, max_pixels=MAX_PIXELS)[0, :, 0].tolist() == [10, 200]


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (5, 4), color) for color in ("red", "blue")]
    for image_format in ("GIF", "WEBP"):
        options = {"lossless": True} if image_format == "WEBP" else {}
        data = file(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
        assert decode(data, max_pixels=MAX_PIXELS)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_exif_orientation_is_applied(orientation: int, image_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {"quality": 95} if image_format == "JPEG" else {}
    data = file(photo(), image_format, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    picture = decode(data, max_pixels=MAX_PIXELS)
    assert picture.shape[:2] == ((16, 24) if orientation < 5 else (24, 16))
    np.testing.assert_array_equal(picture, np.array(expected))


def test_damaged_exif_does_not_cost_the_picture() -> None:
    data = file(photo(), "JPEG", exif=b"Exif\0\0" + b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 20)
    assert decode(data, max_pixels=MAX_PIXELS).shape[:2] == (16, 24)


@pytest.mark.parametrize("size_wh", [(1, 1), (1, 300), (8000, 2), (3, 8000)])
def test_extreme_sizes(size_wh: tuple[int, int]) -> None:
    picture = decode(file(Image.new("RGB", size_wh, "green"), "PNG"), max_pixels=MAX_PIXELS)
    assert picture.shape[:2] == size_wh[::-1]


def test_too_many_pixels_are_rejected_on_the_header_alone() -> None:
    data = file(Image.new("1", (3000, 2000)), "PNG")
    header_only = data[:33] + data[33:60]
    with pytest.raises(ImageTooLargeError, match="3000 x 2000"):
        decode(header_only, max_pixels=5_999_999)
    assert decode(data, max_pixels=6_000_000).shape[:2] == (2000, 3000)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_file_is_broken(image_format: str) -> None:
    data = file(photo((200, 100)), image_format)
    with pytest.raises(BrokenImageError):
        decode(data[: len(data) * 2 // 3], max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("data", [b"", b"not an image at all", b"\xff\xd8\xff\xe0junk", bytes(1000)])
def test_what_is_no_image_is_said_so(data: bytes) -> None:
    with pytest.raises(BrokenImageError):
        decode(data, max_pixels=MAX_PIXELS)


def test_32_bit_pixels_are_rejected_rather_than_guessed() -> None:
    with pytest.raises(UnsupportedImageError, match="32 bits"):
        decode(file(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), max_pixels=MAX_PIXELS)


@settings(max_examples=200)
@given(data=st.data())
def test_no_damage_escapes_as_another_exception(data: st.DataObject) -> None:
    image_format = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]))
    whole = bytearray(file(photo((40, 30)), image_format))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        picture = decode(bytes(whole[:cut] if data.draw(st.booleans()) else whole), max_pixels=1_000_000)
    except ImageError:
        pass
    else:
        assert picture.shape[2] == 3


BROKEN = {
    "broken.png": BrokenImageError,
    "broken_data_stream.png": BrokenImageError,
    "decompression_bomb.gif": ImageTooLargeError,
    "decompression_bomb.ico": UnsupportedImageError,
}


def test_real_odd_images(odd_images: list[Path]) -> None:
    for path in odd_images:
        data = path.read_bytes()
        if path.name in BROKEN:
            with pytest.raises(BROKEN[path.name]):
                decode(data, max_pixels=MAX_PIXELS)
            continue
        picture = decode(data, max_pixels=MAX_PIXELS)
        whole = data[:-1] + b"\xff\xd9" if path.name == "truncated_jpeg.jpg" else data  # half an end marker
        with Image.open(io.BytesIO(whole)) as opened:
            opened.load()
            upright = ImageOps.exif_transpose(opened)
            if upright.mode == "I;16":
                expected = np.array(upright) >> 8
                np.testing.assert_array_equal(picture[..., 0], expected)
            else:
                expected = np.array(
                    upright.convert("RGBA").convert("RGB") if upright.mode == "P" else upright.convert("RGB")
                )
                np.testing.assert_array_equal(picture, expected, err_msg=path.name)


def test_the_eight_orientations_of_a_real_photograph_agree(odd_images: list[Path]) -> None:
    pictures = [
        decode(path.read_bytes(), max_pixels=MAX_PIXELS).astype(int)
        for path in odd_images
        if path.name.startswith("exif_landscape")
    ]
    assert len(pictures) == 8
    for picture in pictures:
        assert picture.shape == pictures[0].shape
        assert np.abs(picture - pictures[0]).mean() < 6  # each was compressed separately


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_final_pixels_are_in_the_memory_that_the_caller_gives(image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file(photo(), image_format, exif=exif)
    picture, given = given_memory(data)
    assert len(given) == 1
    assert np.shares_memory(picture, given[0])
    assert np.array_equal(given[0], decode(data, max_pixels=10**6))


def test_real_photographs_have_the_pixels_that_pillow_sees(coco_photos: list[Path]) -> None:
    for path in coco_photos:
        wanted = np.array(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        assert np.array_equal(decode(path.read_bytes(), max_pixels=10**8), wanted)
