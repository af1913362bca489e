"""Bytes that people really send, to upright RGB pixels."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from PIL import features

from model.images import bmp, gif, jpeg, png, tiff
from model.images.errors import BrokenImageError, ImageError, ImageTooLargeError, UnsupportedImageError
from model.images.foreign import foreign_name, is_avif
from model.images.opened import (
    Allocate,
    OpenedImage,
    Pixels,
    is_lack_of_memory,
    pageable,
    pillow_bytes,
    pillow_image,
    write_rgb,
)
from model.images.tags import exif_orientation

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
ACCEPTED = ", ".join(FORMATS)

LONGEST_SIDE = 1_000_000  # decoders take time and memory for each row, however short
# Sixteen bits a sample take twice the time of eight. An RGBA picture of 8 bits may have all pixels that are allowed.
_MOST_SAMPLE_BYTES_PER_PIXEL = 4
# Of Pillow's decoders, measured by benchmarks/slowest_images.py: time of a pixel, where that of a plain JPEG is 1, time
# of a byte of the picture, as noise takes longer than a smooth picture of its size, and bytes of memory of a pixel.
# libwebp keeps two canvases of four bytes, its copy of the frame and Pillow's image have four each. It decodes alpha as
# a lossless picture of one channel.
_WEBP, _WEBP_WITH_ALPHA, _LOSSLESS_WEBP = (1.8, 5.0, 20), (2.8, 5.0, 20), (2.4, 0.0, 20)
_WEBP_CANVASES = 8  # of those bytes
_AVIF = (1.9, 5.3, 18)
_MOST_AVIF_BYTES_OF_PIXEL = 4  # of one frame. What is beyond belongs to later ones, which are not decoded
_MOST_CHUNKS = 1000  # to walk through in a WebP file: a millisecond
_LITTLE_WORK = 1 << 22  # pixels: well under a tenth of a second
# EXIF's place in AVIF files. It does not turn them (their own boxes do), and Pillow refuses those where it is damaged.
_AVIF_EXIF = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)


def decode(data: bytes, *, max_pixels: int, allocate: Allocate = pageable, upright: bool = True) -> Pixels:
    """`open_image`, then `read_pixels`."""
    return read_pixels(open_image(data, max_pixels=max_pixels), allocate=allocate, upright=upright)


def open_image(data: bytes, *, max_pixels: int) -> OpenedImage:
    """Read the header alone: what it is, and how large.

    Args:
        data: the file.
        max_pixels: bound on width times height.

    Raises:
        BrokenImageError: not an image, or its header is damaged.
        UnsupportedImageError: an image of a kind that is not taken.
        ImageTooLargeError: too many pixels, or parts.
        MemoryError
    """
    if not data:
        raise BrokenImageError("the image is empty: it has no bytes")
    opener = _opener(data, max_pixels)
    if opener is None:
        name = foreign_name(data)
        if name is not None:
            raise UnsupportedImageError(f"this is {name}; accepted are {ACCEPTED}")
        raise BrokenImageError(f"this is not an image; accepted are {ACCEPTED}")
    image = opener(data)
    check_pixels(image.width, image.height, max_pixels=max_pixels)
    if image.sample_bytes > _MOST_SAMPLE_BYTES_PER_PIXEL * max_pixels:
        raise ImageTooLargeError(
            f"the image has {image.width} x {image.height} pixels of {image.sample_bytes:,} bytes; at most "
            f"{_MOST_SAMPLE_BYTES_PER_PIXEL * max_pixels:,} are taken"
        )
    return image


def check_pixels(width: int, height: int, *, max_pixels: int) -> None:
    """Reject an image of too many pixels, or of none.

    Raises:
        ImageTooLargeError, BrokenImageError
    """
    if width * height > max_pixels:
        raise ImageTooLargeError(f"the image has {width} x {height} pixels; at most {max_pixels:,} in all are taken")
    if max(width, height) > LONGEST_SIDE:
        raise ImageTooLargeError(f"the image has {width} x {height} pixels; at most {LONGEST_SIDE:,} a side are taken")
    if width < 1 or height < 1:
        raise BrokenImageError(f"the image has {width} x {height} pixels")


def check_work(image: OpenedImage, *, most: int) -> None:
    """Reject an image that takes longer to decode than a plain JPEG of `most` pixels.

    A thread that decodes cannot be stopped, so the work is bounded before it begins.

    Raises:
        ImageTooLargeError
    """
    if image.work > max(most, _LITTLE_WORK):
        pixels = image.width * image.height
        raise ImageTooLargeError(
            f"this {image.format} image has {image.width} x {image.height} pixels; of its kind, which takes long to "
            f"decode, at most {max(most, _LITTLE_WORK) * pixels // image.work:,} in all are taken"
        )


def read_pixels(image: OpenedImage, *, allocate: Allocate = pageable, upright: bool = True) -> Pixels:
    """Decode the first frame to 8-bit RGB, and turn it upright by its EXIF orientation.

    16-bit samples keep their upper eight bits. An alpha channel is dropped: what lies under it stays visible. Colour
    profiles are not applied.

    Args:
        image: from `open_image`.
        allocate: gives the memory for the pixels, C-contiguous uint8 of the shape asked for. It is called once, and
            its exceptions pass.
        upright: turn it.

    Returns:
        `[H, W, 3]`.

    Raises:
        BrokenImageError: the image is damaged.
        UnsupportedImageError: its pixels are of a kind that is not taken.
        MemoryError
    """
    orientation = image.orientation if upright else 1
    width, height = image.upright_wh if upright else (image.width, image.height)
    pixels = allocate((height, width, 3))
    try:
        image.write(_as_stored(pixels, orientation))
    except Exception as error:  # Pillow raises whatever the malformed bytes lead its decoders to
        if is_lack_of_memory(error, image.working_bytes - image.held_bytes):
            raise MemoryError from error
        if isinstance(error, ImageError):
            raise
        raise BrokenImageError(f"the {image.format} image is broken or truncated") from error
    return pixels


def _as_stored(upright: Pixels, orientation: int) -> Pixels:
    """The view of an upright picture that has the rows and columns of the stored one (CIPA DC-008, section 4.6.4 A)."""
    stored = upright.swapaxes(0, 1) if orientation >= 5 else upright
    flips_rows, flips_columns = orientation in {3, 4, 6, 7}, orientation in {2, 3, 7, 8}
    return stored[:: -1 if flips_rows else 1, :: -1 if flips_columns else 1]


def _opener(data: bytes, max_pixels: int) -> Callable[[bytes], OpenedImage] | None:
    if data.startswith(jpeg.MAGIC):
        return jpeg.open_jpeg
    if data.startswith(png.MAGIC):
        return png.open_png
    if data.startswith(gif.MAGICS):
        return gif.open_gif
    if data.startswith(bmp.MAGIC):
        return bmp.open_bmp
    if data.startswith(tiff.MAGICS):
        return tiff.open_tiff
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return partial(_open_webp, max_pixels=max_pixels)
    if "AVIF" in FORMATS and is_avif(data):
        return lambda data: _open_with_pillow(_AVIF_EXIF.sub(rb"\1none", data), "AVIF", _AVIF)
    return None


def _open_webp(data: bytes, *, max_pixels: int) -> OpenedImage:
    """Open a WebP file. Its size is read here, as libwebp makes its canvases before Pillow tells it."""
    width, height = _webp_canvas(data)
    check_pixels(width, height, max_pixels=max_pixels)
    costs, size = _webp_costs(data)
    return _open_with_pillow(data, "WEBP", costs, size, held=_WEBP_CANVASES * width * height)


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """The width and the height that the first chunk of a WebP file states (RFC 9649, sections 2.5 to 2.7).

    Raises:
        BrokenImageError: the first chunk is of another kind.
    """
    kind, content = data[12:16], data[20:30]
    if kind == b"VP8X":
        return int.from_bytes(content[4:7], "little") + 1, int.from_bytes(content[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(content[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return int.from_bytes(content[6:8], "little") & 0x3FFF, int.from_bytes(content[8:10], "little") & 0x3FFF
    raise BrokenImageError("the WEBP image's header is broken")


def _webp_costs(data: bytes) -> tuple[tuple[float, float, int], int]:
    """Of the first frame of a WebP file: what its kind costs, and its bytes (RFC 9649, sections 2.5 to 2.7).

    A file of more chunks than are walked through costs the most that it can.
    """
    at, lossy = 12, _WEBP
    for _ in range(_MOST_CHUNKS):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind == b"VP8L":
            return _LOSSLESS_WEBP, size
        if kind == b"VP8 ":
            return lossy, size
        if len(kind) < 4:
            break
        if kind == b"ALPH":
            lossy = _WEBP_WITH_ALPHA
        at += 24 if kind == b"ANMF" else 8 + size + size % 2  # a frame has chunks of its own behind 16 bytes
    return _WEBP_WITH_ALPHA, len(data)


def _open_with_pillow(
    data: bytes, image_format: str, costs: tuple[float, float, int], size: int | None = None, *, held: int = 0
) -> OpenedImage:
    """Open a file that no module of ours reads.

    Args:
        data: the file.
        image_format: as in `FORMATS`.
        costs: time of a pixel, time of a byte, and bytes of a pixel.
        size: the picture's bytes in the file; by default as many as one of its pixels can have.
        held: bytes that are taken as soon as it is opened.
    """
    image = pillow_image(data, image_format, needed=held)
    width, height = image.size
    pixels = width * height
    time_of_pixel, time_of_byte, bytes_of_pixel = costs
    if size is None:
        size = min(len(data), _MOST_AVIF_BYTES_OF_PIXEL * pixels)
    return OpenedImage(
        format=image_format,
        width=width,
        height=height,
        orientation=exif_orientation(image.info.get("exif", b"")),
        sample_bytes=pixels * len(image.getbands()),
        work=round(time_of_pixel * pixels + time_of_byte * min(size, len(data))),
        working_bytes=pillow_bytes(pixels, bytes_of_pixel, len(data)),
        held_bytes=held,
        write=lambda out: write_rgb(image, out),
    )
