from __future__ import annotations

import contextlib
import io
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.images.decoding import FORMATS, check_work, decode, open_image
from model.images.errors import ImageError, ImageTooLargeError

EXIF = b"Exif\0\0MM\0*" + struct.pack(">IHI", 8, 0, 0)  # without a tag


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
def test_a_file_of_endless_parts_is_rejected_before_it_is_walked(data: bytes) -> None:
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


def test_photographs_pass(coco_photos: list[Path]) -> None:
    for path in coco_photos:
        open_image(path.read_bytes(), max_pixels=10**7)


def bmp(width: int, height: int, encoded: bytes, *, compression: int = 1) -> bytes:
    """Run-length encoded, of 8 bits."""
    start = 54 + 1024
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, len(encoded), 0, 0, 256, 256)
    return b"BM" + struct.pack("<IHHI", start + len(encoded), 0, 0, start) + info + bytes(1024) + encoded


def gif_with(blocks: bytes) -> bytes:
    whole = file("GIF")
    at = 13 + (3 << ((whole[10] & 7) + 1))
    return whole[:at] + blocks + whole[at:]


def png_of(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND")


def jpeg_of(size: int, scans: int) -> bytes:
    """A header of another size; nothing is decoded."""
    data = progressive_with(scans - 5)  # a grey file has five others
    at = data.index(b"\xff\xc2") + 5
    return data[:at] + struct.pack(">HH", size, size) + data[at + 4 :]


@pytest.mark.parametrize(
    "data",
    [
        bmp(67_108_864, 1, b"\0\0" * 8),
        bmp(1, 67_108_864, b"\0\0" * 8),
        bmp(8192, -8192, b"\0\0" * 8),
        bmp(100, 100, bytes(2 << 20)),
        png_of(1, 67_108_864),
        png_of(67_108_864, 1),
        gif_with(b"\x21\xfe" + b"\x01x" * 600_000 + b"\0"),
        gif_with(b"\x21\xfe\x01x\0" * 600_000),
        jpeg_of(8192, 13),
        jpeg_of(4000, 60),
        jpeg_of(64, 101),
    ],
    ids=lambda data: f"{data[:4]!r} {len(data)}",
)
def test_small_files_that_take_long_are_rejected_on_the_header(data: bytes) -> None:
    started = time.thread_time()
    with pytest.raises(ImageTooLargeError):
        open_image(data, max_pixels=1 << 26)
    assert time.thread_time() - started < 5


@pytest.mark.parametrize("data", [jpeg_of(8192, 10), jpeg_of(8192, 12), jpeg_of(6600, 18), png_of(1, 1_000_000)])
def test_as_much_work_as_encoders_ask_for_passes(data: bytes) -> None:
    open_image(data, max_pixels=1 << 26)


def test_comments_and_other_frames_of_a_gif_cost_nothing() -> None:
    plain = decode(file("GIF"), max_pixels=10_000)
    for blocks in (
        b"\x21\xfe\x03abc\0",
        b"\x21\xff\x0bNETSCAPE2.0\x03\1\0\0\0",
        b"\x21\xfe" + b"\1x" * 100_000 + b"\0",
    ):
        assert (decode(gif_with(blocks), max_pixels=10_000) == plain).all()
    animation = io.BytesIO()
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "lime", "blue")]
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    data = animation.getvalue()
    first = decode(data, max_pixels=10_000)
    assert (decode(data[:-5], max_pixels=10_000) == first).all()


@pytest.mark.parametrize("mode", ["L", "P"])
def test_run_length_encoded_bitmaps_are_decoded(mode: str) -> None:
    data = bmp(4, 2, bytes([4, 7, 0, 0, 2, 9, 2, 8, 0, 1]))
    assert decode(data, max_pixels=100).shape == (2, 4, 3)


def header_of(image_format: str, **options: Any) -> bytes:
    """A small file whose header claims a large picture where that is one field."""
    data = bytearray(file(image_format, **options))
    side = 8000
    if image_format == "PNG":
        data[16:24] = struct.pack(">II", side, side)
    elif image_format == "GIF":
        at = data.index(b",")
        data[6:10] = data[at + 5 : at + 9] = struct.pack("<HH", side, side)
    else:
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
        data[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "is_taken"),
    [
        (header_of("JPEG"), True),
        (header_of("GIF"), True),
        (header_of("PNG"), True),
        (header_of("JPEG", progressive=True), True),  # grey: 6 scans
        (jpeg_of(8000, 12), False),
        (jpeg_of(5000, 12), True),
        (png_of(8000, 8000), False),
        (png_of(5000, 5000), True),
    ],
)
def test_no_decode_takes_longer_than_that_of_a_plain_jpeg(data: bytes, is_taken: bool) -> None:
    image = open_image(data, max_pixels=1 << 26)
    if is_taken:
        check_work(image, most=1 << 26)
    else:
        with pytest.raises(ImageTooLargeError, match=r"of its kind, which takes long to decode, at most [23]\d,"):
            check_work(image, most=1 << 26)


@pytest.mark.parametrize(
    ("image_format", "options", "least"),
    [
        ("WEBP", {"quality": 95}, 2.5),
        ("WEBP", {"quality": 95, "exif": EXIF}, 2.5),  # in the extended layout
        ("WEBP", {"lossless": True}, 1.0),
        ("WEBP", {"lossless": True, "exif": EXIF}, 1.0),
        pytest.param("AVIF", {"quality": 95}, 2.5, marks=pytest.mark.skipif("AVIF" not in FORMATS, reason="no AVIF")),
        ("JPEG", {"quality": 95, "progressive": True}, 1.5),
        ("JPEG", {"quality": 95}, 1.0),
    ],
)
def test_noise_is_more_work_than_a_smooth_picture_where_it_takes_longer(
    image_format: str, options: dict[str, Any], least: float
) -> None:
    """It does in lossy WebP, AVIF and progressive JPEG: 26 MB of WebP noise took 2.2 s where a smooth one took 0.5."""

    def work(picture: Image.Image) -> int:
        buffer = io.BytesIO()
        picture.save(buffer, image_format, **options)
        return open_image(buffer.getvalue(), max_pixels=1 << 26).work

    noise, smooth = Image.effect_noise((512, 512), 200), Image.linear_gradient("L").resize((512, 512))
    ratio = work(noise.convert("RGB")) / work(smooth.convert("RGB"))
    assert ratio >= least
    assert (ratio == 1) == (least == 1)


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"icc_profile": b"odd", "exif": EXIF}])
def test_an_animation_is_as_much_work_as_its_first_frame(options: dict[str, Any]) -> None:
    frames = [Image.effect_noise((64, 64), 200).convert("RGB") for _ in range(40)]
    animation, still = io.BytesIO(), io.BytesIO()
    frames[0].save(animation, "WEBP", save_all=True, append_images=frames[1:], **options)
    frames[0].save(still, "WEBP", **options)
    assert b"VP8X" in animation.getvalue()[:16]
    works = [open_image(each.getvalue(), max_pixels=1 << 26).work for each in (animation, still)]
    assert works[0] == pytest.approx(works[1], rel=0.1)


def webp_work(picture: Image.Image, chunks: int = 0, **options: Any) -> int:
    """Of a WebP file in the extended layout, with so many empty chunks of no known kind before the picture."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", exif=EXIF, **options)
    data = buffer.getvalue()
    assert data[12:16] == b"VP8X"
    data = data[:30] + (b"none" + bytes(4)) * chunks + data[30:]
    data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    return open_image(data, max_pixels=1 << 26).work


def test_alpha_is_more_work_in_lossy_webp() -> None:
    opaque = Image.linear_gradient("L").convert("RGB")
    clear = opaque.copy()
    clear.putalpha(Image.linear_gradient("L"))
    assert webp_work(clear) > 1.4 * webp_work(opaque)


def test_a_cmyk_jpeg_without_an_end_is_more_work() -> None:
    """It is decoded twice: strictly, to see that nothing else is missing, and by Pillow for its colours."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("CMYK").save(buffer, "JPEG")
    whole = buffer.getvalue()
    intact, cut = (open_image(data, max_pixels=1 << 26) for data in (whole, whole[:-2]))
    assert cut.work > 1.5 * intact.work


def test_a_webp_of_endless_chunks_is_as_much_work_as_any() -> None:
    picture = Image.effect_noise((64, 64), 200)
    assert webp_work(picture, lossless=True) == webp_work(picture, chunks=500, lossless=True) == round(2.4 * 64 * 64)
    assert webp_work(picture, chunks=100_000, lossless=True) > 5 * 8 * 100_000


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
def test_a_small_file_is_taken_whatever_its_format(image_format: str) -> None:
    check_work(open_image(file(image_format), max_pixels=64 * 64), most=64 * 64)
