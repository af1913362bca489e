"""TIFF layouts: the right pixels or a rejection, by tifffile, which wrote the files and reads them back."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile
from PIL import Image

from model.images.decoding import decode
from model.images.errors import BrokenImageError, UnsupportedImageError
from tests.support.image_files import Tiff, picture, tiff

MOST = 1 << 26
HEIGHT, WIDTH = 21, 38
Array = np.ndarray[Any, Any]


class Kind(NamedTuple):
    """What a pixel has: the photometric interpretation, the number of colours, and what further samples mean."""

    photometric: str
    colors: int
    extra: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        return self.colors + len(self.extra)


GREY, WHITE, PALETTE = Kind("minisblack", 1), Kind("miniswhite", 1), Kind("palette", 1)
RGB, CMYK = Kind("rgb", 3), Kind("separated", 4)
KINDS = [
    GREY,
    WHITE,
    PALETTE,
    RGB,
    CMYK,
    Kind("minisblack", 1, ("unassalpha",)),
    Kind("rgb", 3, ("unassalpha",)),
    Kind("rgb", 3, ("unspecified",)),
    Kind("rgb", 3, ("unspecified", "unspecified")),
    Kind("separated", 4, ("unspecified",)),
    Kind("cielab", 3),
]
COMPRESSIONS = [None, "lzw", "deflate", "packbits", "zstd", "lzma", "jpeg"]
WITH_PREDICTOR = {"lzw", "deflate", "zstd", "lzma"}
RARE = {"packbits", "zstd", "lzma"}  # seen in one layout each
LAYOUTS: list[dict[str, Any]] = [{}, {"rowsperstrip": 8}, {"tile": (16, 16)}]


def samples_of(kind: Kind, bits: int) -> Array:
    """`[H, W, samples]`, or `[H, W]` of one sample: a smooth picture with noise in its lower bits."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [(x * (3 + i) + y * (5 - i) + 17 * i) * (1 << bits) // 400 % (1 << bits) for i in range(kind.samples)]
    made = np.stack(planes, axis=-1).astype(np.uint16 if bits > 8 else np.uint8)
    if bits > 8:
        made = made | np.random.default_rng(0).integers(0, 1 << (bits - 8), made.shape, np.uint16)
    return made if kind.samples > 1 else made[..., 0]


def rgb_of(samples: Array, kind: Kind, bits: int, color_map: Array | None) -> Array:
    """What the samples look like in 8 bits."""
    if color_map is not None:
        return (color_map[:, samples] >> 8).astype(np.uint8).transpose(1, 2, 0)
    wide = samples.astype(np.int64)
    eight = (wide >> (bits - 8) if bits >= 8 else wide * 255 // ((1 << bits) - 1)).astype(np.uint8)
    if kind.colors == 1:
        grey = eight if eight.ndim == 2 else eight[..., 0]
        return np.stack([255 - grey if kind.photometric == "miniswhite" else grey] * 3, axis=-1)
    if kind.colors == 4:
        return np.asarray(Image.frombytes("CMYK", (WIDTH, HEIGHT), eight[..., :4].tobytes()).convert("RGB"))
    return eight[..., :3]


def files(kind: Kind, bits: int) -> Iterator[tuple[str, bytes, Array]]:
    """Description, file, and the pixels that it shows, for what tifffile can write and reads back the same."""
    ways = itertools.product(COMPRESSIONS, ("contig", "separate"), "<>", (False, True), LAYOUTS, (False, True))
    for compression, planar, byte_order, big, layout, predictor in ways:
        if (planar == "separate" and kind.samples == 1) or (predictor and compression not in WITH_PREDICTOR):
            continue
        if (big and (layout or predictor)) or (compression in RARE and (layout or byte_order == ">" or big)):
            continue
        samples = samples_of(kind, bits)
        options = {"photometric": kind.photometric, "byteorder": byte_order, "bigtiff": big, **layout}
        options |= {"compression": compression, "predictor": predictor or None, "metadata": None}
        color_map = None
        if kind.samples > 1:
            options |= {"planarconfig": planar, "extrasamples": kind.extra}
        if kind == PALETTE:
            color_map = np.random.default_rng(1).integers(0, 256, (3, 1 << bits), np.uint16) * 257
            options["colormap"] = color_map
        if bits == 4:
            options["bitspersample"] = bits
        stored = np.moveaxis(samples, -1, 0) if planar == "separate" else samples
        buffer = io.BytesIO()
        try:
            tifffile.imwrite(buffer, stored.astype(bool) if bits == 1 else stored, **options)
            back = tifffile.imread(io.BytesIO(buffer.getvalue()))
        except (ValueError, KeyError, NotImplementedError, RuntimeError, TypeError):
            continue
        if compression == "jpeg":
            samples = np.moveaxis(back, 0, -1) if planar == "separate" else back
        elif not np.array_equal(back, stored):
            continue
        yield f"{compression} {planar} {options}", buffer.getvalue(), rgb_of(samples, kind, bits, color_map)


TAKEN = {(1, GREY), (1, WHITE), (4, GREY), (4, WHITE)}
TAKEN |= {(8, kind) for kind in KINDS} | {(16, kind) for kind in KINDS if kind != PALETTE}
COMMON = {(bits, kind) for bits in (8, 16) for kind in (GREY, RGB, CMYK)}
TAKEN -= {(8, KINDS[-1]), (16, KINDS[-1])}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [1, 4, 8, 16])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: " ".join([kind.photometric, *kind.extra]))
def test_a_layout_has_the_right_pixels_or_is_rejected(kind: Kind, bits: int) -> None:
    taken = 0
    for described, data, wanted in files(kind, bits):
        try:
            pixels = decode(data, max_pixels=MOST)
        except UnsupportedImageError:
            assert (bits, kind) not in COMMON or "jpeg" in described, described
            continue
        taken += 1
        difference = np.abs(pixels.astype(int) - wanted).max()
        assert difference <= (2 if described.startswith("jpeg") else 0), described
    assert bool(taken) == ((bits, kind) in TAKEN)


def test_palettes_of_four_bits() -> None:
    indices = np.arange(16 * 24).reshape(16, 24) % 16
    colors = np.random.default_rng(0).integers(0, 256, (3, 16))
    raw = (indices[:, ::2] << 4 | indices[:, 1::2]).astype(np.uint8).tobytes()
    data = tiff(indices, (320, 3, (colors * 257).ravel().tolist()), bits=4, photometric=3, raw=raw)
    np.testing.assert_array_equal(decode(data, max_pixels=MOST), colors.T[indices])


def test_palettes_of_old_writers_have_eight_bits_a_colour() -> None:
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colors = np.random.default_rng(0).integers(0, 256, (3, 256))
    data = tiff(indices, (320, 3, colors.ravel().tolist()), photometric=3)
    np.testing.assert_array_equal(decode(data, max_pixels=MOST), colors.T[indices])


@pytest.mark.parametrize("byte_order", "<>")
@pytest.mark.parametrize("reversed_bits", [False, True])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_grey_of_twelve_bits(byte_order: str, reversed_bits: bool, white_is_zero: bool) -> None:
    values = (np.arange(16 * 24).reshape(16, 24) * 10).astype(np.uint16)
    bits = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(16, 24, 2), axis=2)[:, :, 4:]
    raw = np.packbits(bits.reshape(-1), bitorder="little" if reversed_bits else "big").tobytes()
    order = [(266, 3, [2])] if reversed_bits else []
    data = tiff(values, *order, byte_order=byte_order, bits=12, photometric=int(not white_is_zero), raw=raw)
    wanted = (values >> 4).astype(np.uint8)
    np.testing.assert_array_equal(decode(data, max_pixels=MOST)[..., 0], 255 - wanted if white_is_zero else wanted)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", [False, True])
def test_colours_that_alpha_multiplied_are_divided_again(bits: int, planar: bool) -> None:
    full = picture(16, 24)
    alpha = np.full((16, 24, 1), 128, np.uint8)
    stored = np.concatenate([full // 2, alpha], axis=-1).astype("<u2" if bits == 16 else np.uint8)
    stored = stored * 257 if bits == 16 else stored
    buffer = io.BytesIO()
    laid = np.moveaxis(stored, -1, 0) if planar else stored
    tifffile.imwrite(buffer, laid, photometric="rgb", planarconfig="separate" if planar else "contig", extrasamples=[1])
    assert np.abs(decode(buffer.getvalue(), max_pixels=MOST).astype(int) - full).max() <= 3


@pytest.mark.parametrize(
    ("dtype", "bits", "name"),
    [("<f4", 32, "float"), ("<i4", 32, "signed"), ("<u4", 32, "32 bits"), ("i1", 8, "signed")],
)
def test_other_samples_are_named(dtype: str, bits: int, name: str) -> None:
    kind = {"f": 3, "i": 2, "u": 1}[dtype.strip("<")[0]]
    data = tiff(np.ones((4, 4), dtype), (339, 3, [kind]), bits=bits, photometric=1)
    with pytest.raises(UnsupportedImageError, match=name):
        decode(data, max_pixels=MOST)


@pytest.mark.parametrize("bits", [8, 16])
def test_differences_of_pack_bits_are_rejected_as_decoders_disagree(bits: int) -> None:
    """Tifffile writes them and undoes them, libtiff takes them for samples."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples_of(RGB, bits), photometric="rgb", compression="packbits", predictor=True)
    with pytest.raises(UnsupportedImageError, match="compression 32773"):
        decode(buffer.getvalue(), max_pixels=MOST)


def with_tags(pixels: Array, *changed: tuple[int, int, list[int]]) -> bytes:
    """A TIFF of one strip with other values in some tags."""
    made = Tiff()
    tags = {number: (number, kind, values) for number, kind, values in made.image_tags(pixels)}
    tags |= {tag[0]: tag for tag in changed}
    return made.file(made.directory(list(tags.values())))


def test_without_a_photometric_interpretation_the_number_of_samples_tells_it() -> None:
    """As in libtiff."""
    for pixels in (picture(16, 24), picture(16, 24)[..., 0]):
        made = Tiff()
        tags = [tag for tag in made.image_tags(pixels) if tag[0] != 262]
        shown = decode(made.file(made.directory(tags)), max_pixels=MOST)
        np.testing.assert_array_equal(shown, pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=-1))


def test_samples_of_differing_bits_are_named() -> None:
    with pytest.raises(UnsupportedImageError, match="samples of differing bits, RGB"):
        decode(with_tags(picture(16, 24), (258, 3, [5, 6, 5])), max_pixels=MOST)


def test_nothing_of_a_file_reaches_the_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    pixels = picture(64, 64)
    odd = [(number, 16, [number]) for number in range(51000, 55000)]  # 8-byte numbers, which a classic TIFF has not
    made = Tiff(big=True)
    big = made.file(made.directory([*made.image_tags(pixels), *odd]))
    np.testing.assert_array_equal(decode(big, max_pixels=MOST), pixels)
    for compression in (2, 3, 4, 5, 7, 8, 32773, 34925, 50000):
        noise = np.random.default_rng(compression).bytes(64 * 64)
        bits = 1 if compression in {2, 3, 4} else 8
        grey = with_tags(pixels[..., 0], (259, 3, [compression]), (258, 3, [bits]), (262, 3, [1]))
        with contextlib.suppress(BrokenImageError):  # some make pixels of whatever comes
            decode(grey[:8] + noise + grey[8 + len(noise) :], max_pixels=MOST)
    assert capfd.readouterr().err == ""
