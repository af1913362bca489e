"""What is wrong beside the pixels costs no picture."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from model.images.decoding import decode
from model.images.errors import BrokenImageError, ImageError, ImageTooLargeError, UnsupportedImageError
from tests.support.image_files import Tiff, chunk, picture, saved, segment, tiff

MOST = 1 << 26
PIXELS = picture()
PNG = saved(PIXELS, "PNG")
NOISE = np.random.default_rng(0).integers(0, 255, 1_200_000, dtype=np.uint8).tobytes()


def early(*chunks: bytes) -> bytes:
    return PNG[:33] + b"".join(chunks) + PNG[33:]


def late(*chunks: bytes) -> bytes:
    return PNG[:-12] + b"".join(chunks) + PNG[-12:]


@pytest.mark.parametrize(
    "data",
    [
        early(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 2_000_000))),
        early(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b" " * 1_500_000))),
        early(chunk(b"iCCP", b"ICC\0\0" + zlib.compress(NOISE))),
        early(chunk(b"iCCP", b"ICC\0\0" + zlib.compress(b"x"), crc=1)),
        early(chunk(b"iCCP", b"ICC\0\x07junk")),
        early(chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1), crc=1)),
        early(chunk(b"tEXt", b"Software\0x", crc=1)),
        early(chunk(b"pHYs", b"\0\0\x0b")),
        early(chunk(b"cHRM", b"\0" * 5)),
        early(chunk(b"gAMA", b"")),
        early(chunk(b"sRGB", b"")),
        early(chunk(b"tRNS", b"\0")),
        early(chunk(b"bKGD", b"")),
        early(chunk(b"acTL", b"\0")),
        early(chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff")),
        early(chunk(b"PLTE", b"\0\0")),  # a suggestion, in a picture that has colours
        early(chunk(b"quIt", bytes(2_000_000))),
        late(chunk(b"zTXt", b"Comment\0\x78" + zlib.compress(b"hello"))),
        late(chunk(b"cHRM", b"\0" * 5)),
        late(chunk(b"tEXt", b"a\0b", crc=7)),
        PNG[:-12],
        PNG[:-12] + b"\0\0\0\0IEND\0\0\0\0",
        PNG[:-12] + chunk(b"tEXt", b"a\0" + bytes(100))[:-50],
        PNG[:-16],  # without the checksum of the last pixels
        PNG[:-18],  # and half of that which zlib adds
    ],
    ids=lambda data: f"{data[37:41]!r} {data[-20:-12]!r} {len(data)}",
)
def test_pixels_of_a_png_decide(data: bytes) -> None:
    np.testing.assert_array_equal(decode(data, max_pixels=MOST), PIXELS)


@pytest.mark.parametrize("end", [-60, -200, 60])
def test_a_png_without_its_last_pixels_is_broken(end: int) -> None:
    with pytest.raises(BrokenImageError):
        decode(PNG[:end], max_pixels=MOST)


def test_pixels_whose_checksum_is_wrong_are_broken() -> None:
    at = PNG.index(b"IDAT") + 40
    with pytest.raises(BrokenImageError):
        decode(PNG[:at] + bytes([PNG[at] ^ 1]) + PNG[at + 1 :], max_pixels=MOST)


def test_a_png_of_a_palette_that_is_not_there_is_broken() -> None:
    data = saved(Image.fromarray(PIXELS).quantize(8), "PNG")
    at = data.index(b"PLTE") - 4
    without = data[:at] + data[at + 12 + int.from_bytes(data[at : at + 4]) :]
    with pytest.raises(BrokenImageError, match="palette"):
        decode(without, max_pixels=MOST)


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "LA", "RGBA", "1"])
def test_transparency_is_dropped_and_the_colours_stay(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    plain = saved(image, "PNG")
    key = {"P": bytes([0, 99]), "L": b"\0\7", "RGB": b"\0\1\0\2\0\3"}.get(mode, b"")
    at = plain.index(b"IDAT") - 4
    data = plain[:at] + (chunk(b"tRNS", key) if key else b"") + plain[at:]
    alpha_dropped = image.convert("RGBA").convert("RGB") if mode == "P" else image.convert("RGB")
    np.testing.assert_array_equal(decode(data, max_pixels=MOST), np.array(alpha_dropped))


def test_xcode_s_png_is_named() -> None:
    with pytest.raises(UnsupportedImageError, match="CgBI"):
        decode(PNG[:8] + chunk(b"CgBI", bytes(4)) + PNG[8:], max_pixels=MOST)


def test_exif_in_a_png_turns_it_wherever_it_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    for data in (early(chunk(b"eXIf", content)), late(chunk(b"eXIf", content))):
        np.testing.assert_array_equal(decode(data, max_pixels=MOST), np.rot90(PIXELS, -1))


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


def first_thumbnail(*, sub: bool, main: int = 2) -> bytes:
    made = Tiff()
    full = made.directory([*made.image_tags(PIXELS, photometric=main), (254, 4, [0])])
    small = [*made.image_tags(PIXELS[::4, ::4].copy()), (254, 4, [1])]
    if sub:
        return made.file(made.directory([*small, (330, 4, [full])]))
    return made.file(made.directory(small, following=full))


@pytest.mark.parametrize("sub", [False, True])
def test_a_reduced_first_page_is_passed_over(sub: bool) -> None:
    np.testing.assert_array_equal(decode(first_thumbnail(sub=sub), max_pixels=MOST), PIXELS)


@pytest.mark.parametrize("main", [32803, 34892])
@pytest.mark.parametrize("sub", [False, True])
def test_a_camera_s_raw_file_is_named(sub: bool, main: int) -> None:
    with pytest.raises(UnsupportedImageError, match="camera raw"):
        decode(first_thumbnail(sub=sub, main=main), max_pixels=MOST)


def test_directories_that_refer_to_each_other_end() -> None:
    made = Tiff()
    page = [*made.image_tags(PIXELS), (254, 4, [1]), (330, 4, [8, 9, 10])]
    first = made.directory(page, following=made.directory(page, following=8))
    np.testing.assert_array_equal(decode(made.file(first), max_pixels=MOST), PIXELS)


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
    for head in (b"", b"\xff\xd8", b"BM", b"II*\0", b"GIF89a", PNG[:8]):
        with pytest.raises(ImageError) as caught:
            decode(head + b"secret" + bytes(50), max_pixels=MOST)
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)
