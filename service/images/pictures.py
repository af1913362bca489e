"""Pictures as the service has them, and what is wrong with an image file as HTTP says it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.images import decoding
from model.images.errors import BrokenImageError as BrokenFileError
from model.images.errors import ImageError, ImageTooLargeError, UnsupportedImageError
from model.images.opened import Allocate
from model.images.opened import OpenedImage as OpenedImage
from model.images.opened import Pixels as Pixels
from model.images.opened import pageable as pageable
from service.errors import (
    RETRY_WITHOUT_MEMORY_S,
    BrokenImageError,
    ServiceError,
    TooLargeError,
    UnavailableError,
    UnsupportedTypeError,
)

_PROBLEMS: dict[type[ImageError], type[ServiceError]] = {
    BrokenFileError: BrokenImageError,
    UnsupportedImageError: UnsupportedTypeError,
    ImageTooLargeError: TooLargeError,
}


class Region(NamedTuple):
    """A part of a picture, in its pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def xyxy(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.left + self.width, self.top + self.height


@dataclass(frozen=True, slots=True)
class Picture:
    """An upright picture: uint8 `[3, H, W]` RGB, a view of pixels that lie as `[H, W, 3]`."""

    pixels: Tensor
    on_device: Tensor | None = None  # the same, where it has been sent to the detector's device already

    @property
    def size_hw(self) -> tuple[int, int]:
        _, height, width = self.pixels.shape
        return height, width

    @property
    def device_pixels(self) -> Tensor:
        """The pixels on the device if they are there already, else on the host."""
        return self.pixels if self.on_device is None else self.on_device

    def part(self, region: Region) -> Picture:
        """A part of it, which shares its memory."""
        left, top, right, bottom = region.xyxy
        on_device = None if self.on_device is None else self.on_device[:, top:bottom, left:right]
        return Picture(self.pixels[:, top:bottom, left:right], on_device)

    def to_pil(self) -> Image.Image:
        return Image.fromarray(self.pixels.permute(1, 2, 0).numpy())


def decode(data: bytes, *, max_pixels: int, allocate: Allocate = pageable) -> Picture:
    """Decode a file of one's own, however long that takes. Blocking: call it in a thread.

    Raises:
        ServiceError: see `open_image` and `upright_rgb`.
    """
    with _problems():
        image = decoding.open_image(data, max_pixels=max_pixels)
    return upright_rgb(image, allocate=allocate)


def open_image(data: bytes, *, max_pixels: int) -> OpenedImage:
    """Read the header alone: what it is, how large, and how long it takes to decode.

    Args:
        data: the file.
        max_pixels: bound on width times height, and on the work: no more than a plain JPEG of so many pixels takes.

    Raises:
        BrokenImageError: not an image, or its header is damaged.
        UnsupportedTypeError: an image of a kind that is not taken.
        TooLargeError: too many pixels, or parts.
        UnavailableError: there is no memory left.
    """
    with _problems():
        image = decoding.open_image(data, max_pixels=max_pixels)
        decoding.check_work(image, most=max_pixels)
    return image


def check_pixels(width: int, height: int, *, max_pixels: int) -> None:
    """Reject an image of too many pixels, or of none.

    Raises:
        TooLargeError, BrokenImageError
    """
    with _problems():
        decoding.check_pixels(width, height, max_pixels=max_pixels)


def upright_rgb(image: OpenedImage, *, allocate: Allocate = pageable) -> Picture:
    """Decode to upright 8-bit RGB, as `model.images.decoding.read_pixels` does. Blocking: call it in a thread.

    Args:
        image: from `open_image`.
        allocate: gives the memory for the upright pixels.

    Raises:
        BrokenImageError: the image is damaged.
        UnsupportedTypeError: its pixels are of a kind that is not taken.
        UnavailableError: there is no memory left.
    """
    with _problems():
        pixels = decoding.read_pixels(image, allocate=allocate)
    # Left in the decoder's order: the detector reads all pixels once anyway, to make them floats. Transposed by numpy:
    # torch releases the interpreter for that, and the event loop takes it.
    return Picture(torch.from_numpy(pixels.transpose(2, 0, 1)))


def from_pixels(pixels: Pixels | Image.Image, *, allocate: Allocate = pageable) -> Picture:
    """The picture of 8-bit RGB pixels, `[H, W, 3]`, which are copied into `allocate`'s memory. Blocking.

    Raises:
        UnavailableError: there is no memory left.
    """
    source = np.asarray(pixels)
    with _problems():
        copy = allocate(source.shape)
    np.copyto(copy, source)
    return Picture(torch.from_numpy(copy).permute(2, 0, 1))


@contextmanager
def _problems() -> Iterator[None]:
    """Answer 4xx for what is wrong with a file, and 503 for want of memory, which is not the caller's fault."""
    try:
        yield
    except ImageError as error:
        raise _PROBLEMS[type(error)](str(error)) from error
    except MemoryError as error:
        raise UnavailableError(
            "there is no memory left to decode the image", retry_after_s=RETRY_WITHOUT_MEMORY_S
        ) from error
