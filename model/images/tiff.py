"""TIFF 6.0 and BigTIFF: from a known layout to 8-bit RGB."""

from __future__ import annotations

import ctypes
from contextlib import suppress

import numpy as np
from PIL import Image, _imaging

from model.images.errors import BrokenImageError, UnsupportedImageError
from model.images.opened import OpenedImage, Pixels, pillow_bytes, pillow_image, write_rgb
from model.images.tags import ORIENTATION, first_offset
from model.images.tiff_layout import CMYK, RGB, WHITE_IS_ZERO, Layout, plain_file, read_layout
from model.images.tiff_pages import picture_directory

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Libtiff writes what is wrong with a file to the standard error, past the log; Pillow raises, too, where it matters.
with suppress(OSError, AttributeError):
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def open_tiff(data: bytes) -> OpenedImage:
    """Read the directory of the picture: the first page's, unless that is a reduced version of another.

    Raises:
        BrokenImageError, UnsupportedImageError, ImageTooLargeError
    """
    directory = picture_directory(data, *first_offset(data))
    layout = read_layout(directory)
    orientation = directory.integer(ORIENTATION, 1)
    return OpenedImage(
        format="TIFF",
        width=layout.width,
        height=layout.height,
        orientation=orientation if 1 <= orientation <= 8 else 1,
        sample_bytes=layout.sample_bytes,
        work=layout.work,
        working_bytes=layout.working_bytes + pillow_bytes(layout.width * layout.height, 4, 2 * len(data)),
        write=lambda out: _write(layout, out),
    )


def _write(layout: Layout, out: Pixels) -> None:
    if layout.is_planar or (layout.bits in {12, 16} and layout.samples == 1):
        _write_planes(layout, out)
        return
    write_rgb(_opened(plain_file(layout, plane=None)), out)


def _opened(file: bytes) -> Image.Image:
    try:
        return pillow_image(file, "TIFF")
    except BrokenImageError as error:  # the tags are ours, and sound
        raise UnsupportedImageError("TIFF images of this kind are not taken") from error


def _write_planes(layout: Layout, out: Pixels) -> None:
    """Each plane's upper eight bits, then the colours that they make."""
    colors = {RGB: 3, CMYK: 4}.get(layout.photometric, 1)
    planes = [_plane(layout, index) for index in range(colors + layout.has_premultiplied_alpha)]
    if layout.photometric == WHITE_IS_ZERO:
        planes[0] = 255 - planes[0]
    if colors == 1:
        out[...] = planes[0][..., None]
    elif layout.has_premultiplied_alpha or layout.photometric == CMYK:
        height, width, _ = out.shape
        mode = "CMYK" if layout.photometric == CMYK else "RGBa"
        merged = Image.frombytes(mode, (width, height), np.stack(planes, axis=-1).tobytes())
        out[...] = np.asarray((merged.convert("RGBA") if mode == "RGBa" else merged).convert("RGB"))
    else:
        for channel, plane in enumerate(planes):
            out[..., channel] = plane


def _plane(layout: Layout, index: int) -> Pixels:
    image = _opened(plain_file(layout, index))
    if image.size != (layout.width, layout.height) or not image.mode.startswith(("L", "I;16")):
        raise UnsupportedImageError("TIFF images of this kind are not taken")
    samples = np.asarray(image)
    return samples if samples.dtype == np.uint8 else (samples >> (layout.bits - 8)).astype(np.uint8)
