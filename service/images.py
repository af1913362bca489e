"""Bytes that people really send, to upright RGB pixels."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError, features
from torch import Tensor

from service.errors import BrokenImageError, TooLargeError, UnsupportedTypeError
from service.segments import refuse_endless

# Our own limit is checked before anything is decoded; Pillow's would warn from inside the decoding threads.
Image.MAX_IMAGE_PIXELS = None

# Phones' JPEG files that carry a second picture are opened as JPEG too.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
ACCEPTED = ", ".join(FORMATS)

_ORIENTATION_TAG = 0x0112
# EXIF orientation to what brings the picture upright (CIPA DC-008, section 4.6.4 A).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Files that people take for images we accept: (offset, first bytes, what to call them).
_FOREIGN = (
    (0, b"%PDF", "a PDF"),
    (0, b"\x00\x00\x01\x00", "an ICO file"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"<?xml", "an XML or SVG file"),
    (0, b"<!DOCTYPE", "an HTML page"),
    (0, b"\xff\x0a", "a JPEG XL file"),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL file"),
    (0, b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 file"),
    (4, b"ftyphei", "a HEIC file"),
    (4, b"ftypmif1", "a HEIF file"),
    (4, b"ftypisom", "a video"),
    (4, b"ftypmp4", "a video"),
)


Pixels = npt.NDArray[np.uint8]  # [H, W, 3] RGB
# Gives the memory for a picture's final pixels of shape (height, width, 3). It may be called again for the same picture
# where a first decoder fails; the memory that it gave before is not used any more then.
Allocate = Callable[[tuple[int, int, int]], Pixels]


def pageable(shape: tuple[int, int, int]) -> Pixels:
    """Memory for pixels from the system: the default `Allocate`."""
    return np.empty(shape, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Picture:
    """An upright picture: uint8 `[3, H, W]` RGB, a view of pixels that lie as `[H, W, 3]`."""

    pixels: Tensor
    on_device: Tensor | None = None  # the same, where it has been sent to the detector's device already

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def nearest(self) -> Tensor:
        """The pixels where the detector gets at them soonest."""
        return self.pixels if self.on_device is None else self.on_device

    def to_pil(self) -> Image.Image:
        return Image.fromarray(self.pixels.permute(1, 2, 0).numpy())


def decode(data: bytes, *, max_pixels: int, allocate: Allocate = pageable) -> Picture:
    """`open_image`, then `upright_rgb`. Blocking: call it in a thread."""
    return upright_rgb(open_image(data, max_pixels=max_pixels), data, allocate=allocate)


def open_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """Read the header alone: what it is, and how large.

    Args:
        data: the file.
        max_pixels: bound on width times height.

    Raises:
        BrokenImageError: not an image, or its header is damaged.
        UnsupportedTypeError: an image of a kind that is not taken.
        TooLargeError: too many pixels, or parts.
    """
    refuse_endless(data)
    image = _open(data)
    check_pixels(*image.size, max_pixels=max_pixels)
    return image


def check_pixels(width: int, height: int, *, max_pixels: int) -> None:
    """Refuse an image of too many pixels, or of none.

    Raises:
        TooLargeError, BrokenImageError
    """
    if width * height > max_pixels:
        raise TooLargeError(f"the image has {width} x {height} pixels; at most {max_pixels:,} in all are taken")
    if width < 1 or height < 1:
        raise BrokenImageError(f"the image has {width} x {height} pixels")


def from_pixels(pixels: Pixels | Image.Image, *, allocate: Allocate = pageable) -> Picture:
    """The picture of 8-bit RGB pixels, `[H, W, 3]`, which are copied into `allocate`'s memory. Blocking."""
    source = np.asarray(pixels)
    copy = allocate(source.shape)
    np.copyto(copy, source)
    # Left in the decoder's order: the detector goes through the pixels once anyway, to make them floats.
    return Picture(torch.from_numpy(copy).permute(2, 0, 1))


def upright_rgb(image: Image.Image, data: bytes, *, allocate: Allocate = pageable) -> Picture:
    """Decode the first frame, turn it upright by its EXIF orientation, and bring it to 8-bit RGB.

    16-bit grey keeps its upper eight bits, as 16-bit colour does in Pillow. An alpha channel is dropped: what lies
    under it stays visible. Colour profiles are not applied. Blocking: call it in a thread.

    Args:
        image: from `open_image`.
        data: the file that it was opened from.
        allocate: gives the memory for the upright pixels.

    Raises:
        BrokenImageError: the image is damaged.
        UnsupportedTypeError: its pixels are of a kind that is not taken.
    """
    try:
        # A turned picture is decoded into memory of its own and turned into the caller's.
        is_turned_jpeg = image.format == "JPEG" and _orientation(image) in _UPRIGHT
        pixels = _sound_jpeg(image, data, pageable if is_turned_jpeg else allocate)
        if pixels is not None and not is_turned_jpeg:
            return Picture(torch.from_numpy(pixels).permute(2, 0, 1))
        if pixels is None:
            image.load()  # some formats tell the orientation after the pixels
        turn = _UPRIGHT.get(_orientation(image))
        rgb = _to_rgb(image) if pixels is None else Image.fromarray(pixels)
    except UnsupportedTypeError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever the malformed bytes lead them to
        raise BrokenImageError(f"the {image.format} image is broken: {_reason(error)}") from error
    return from_pixels(rgb if turn is None else rgb.transpose(turn), allocate=allocate)


def _open(data: bytes) -> Image.Image:
    if not data:
        raise BrokenImageError("the image is empty: it has no bytes")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        for offset, magic, name in _FOREIGN:
            if data[offset : offset + len(magic)] == magic:
                raise UnsupportedTypeError(f"this is {name}; accepted are {ACCEPTED}") from error
        raise BrokenImageError(f"this is not an image, or its header is broken; accepted are {ACCEPTED}") from error
    except Exception as error:
        raise BrokenImageError(f"the image's header is broken: {_reason(error)}") from error


def _sound_jpeg(image: Image.Image, data: bytes, allocate: Allocate = pageable) -> Pixels | None:
    """The pixels `[H, W, 3]` of a JPEG in colour, in three quarters of the time that Pillow takes for the same ones.

    None where Pillow has to judge: a damaged file, or another kind.
    """
    if image.format != "JPEG" or image.mode != "RGB":
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        if (width, height) != image.size:  # two headers, of which one was checked
            return None
        pixels = allocate((int(height), int(width), 3))
        simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=pixels)
    except ValueError:
        return None
    return pixels


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - damaged metadata is no reason to refuse a good picture
        return 1
    return orientation if isinstance(orientation, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in {"I", "F"}:
        raise UnsupportedTypeError(f"{image.format} images of 32 bits a pixel are not taken; send 8 or 16")
    if "transparency" in image.info and image.mode == "P":
        # Straight to RGB Pillow warns, as it cannot keep an alpha value for each palette entry.
        image = image.convert("RGBA")
    if image.mode == "RGB":
        return image  # `convert` would copy it
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise UnsupportedTypeError(f"{image.format} images of mode {image.mode} are not taken") from error


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
