"""A file whose header is read, and how its pixels get into an array."""

from __future__ import annotations

import io
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.images.errors import BrokenImageError, UnsupportedImageError

Pixels = npt.NDArray[np.uint8]  # [H, W, 3] RGB
# Gives the memory for a picture's final pixels of shape (height, width, 3): C-contiguous.
Allocate = Callable[[tuple[int, int, int]], Pixels]

# Our own limits are checked before anything is decoded; Pillow's would warn from inside the decoding threads.
Image.MAX_IMAGE_PIXELS = None

_BAND_PIXELS = 1 << 20  # converted at a time, so that conversions need little memory
_BYTES_OF_BAND_PIXEL = 12  # cut out, converted, as an array


def pillow_bytes(pixels: int, bytes_of_pixel: int, file_bytes: int) -> int:
    """Most memory that `write_rgb` needs: an image of Pillow's or several, a band in conversion, the file once more.

    Args:
        pixels: of the image.
        bytes_of_pixel: in all images that are in memory at once, without the final pixels.
        file_bytes: of the file.
    """
    return bytes_of_pixel * pixels + _BYTES_OF_BAND_PIXEL * min(pixels, _BAND_PIXELS) + 2 * file_bytes


def pageable(shape: tuple[int, int, int]) -> Pixels:
    """Memory for pixels from the system: the default `Allocate`."""
    return np.empty(shape, dtype=np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedImage:
    """What the header says. The pixels are not decoded yet.

    Attributes:
        format: as in `decoding.FORMATS`.
        width, height: as stored, before the picture is turned upright.
        orientation: 1 to 8, as EXIF numbers them.
        sample_bytes: of all samples, as the file's decoder unpacks them.
        work: pixels of a plain JPEG that take as long to decode; 67 million take about a second of a core.
        working_bytes: most memory that decoding needs at once, beside the file and the pixels that it gives.
        held_bytes: the part of that which is taken since the file was opened.
        write: decodes into an array `[height, width, 3]`, which may be a view. Raises `ImageError` where the file is
            rejected, `MemoryError`, or whatever Pillow raises for a damaged file.
    """

    format: str
    width: int
    height: int
    orientation: int = 1
    sample_bytes: int
    work: int
    working_bytes: int
    held_bytes: int = 0
    write: Callable[[Pixels], None]

    @property
    def upright_wh(self) -> tuple[int, int]:
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def is_lack_of_memory(error: Exception, needed: int) -> bool:
    """Whether an error of a decoder means that memory is short: it says so, or the system does not give what it needed.

    libwebp, libavif and libtiff fail for a lack of memory as they do for a broken file. This finds a limit on address
    space or on memory that is promised, not that of a container, and only while memory is still short.

    Args:
        error: what was raised. Its frames are cleared, as they hold what the decoder took.
        needed: most bytes that the decoder takes. They are asked for and not touched.
    """
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return True
    for one in (error, error.__cause__, error.__context__):
        if one is not None:
            traceback.clear_frames(one.__traceback__)
    try:
        np.empty(needed, np.uint8)
    except MemoryError:
        return True
    return False


def pillow_image(data: bytes, image_format: str, *, needed: int = 0) -> Image.Image:
    """Open a file as one format.

    Args:
        data: the file.
        image_format: as in `decoding.FORMATS`.
        needed: most bytes that opening it may take.

    Raises:
        BrokenImageError: Pillow does not take it for one.
        MemoryError
    """
    try:
        return Image.open(io.BytesIO(data), formats=[image_format])
    except Exception as error:  # Pillow raises whatever the malformed bytes lead its readers to
        if is_lack_of_memory(error, needed):
            raise MemoryError from error
        raise BrokenImageError(f"the {image_format} image's header is broken") from error


def write_rgb(image: Image.Image, out: Pixels) -> None:
    """Decode with Pillow and convert to 8-bit RGB, without the alpha channel: what lies under it stays visible.

    Raises:
        BrokenImageError: another size than the header's.
        UnsupportedImageError: Pillow does not convert such pixels.
    """
    height, width, _ = out.shape
    if image.size != (width, height):
        raise BrokenImageError(f"the {image.format} image has two sizes")
    image.load()
    image.info.pop("transparency", None)  # of a palette: Pillow would blend or warn, and alpha is dropped anyway
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        band = image if rows >= height else image.crop((0, top, width, bottom))
        out[top:bottom] = np.asarray(_to_rgb(band))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image  # `convert` would copy it
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in {"I", "F"}:
        raise UnsupportedImageError(f"{image.format} images of 32 bits a sample are not taken; send 8 or 16")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise UnsupportedImageError(f"{image.format} images of mode {image.mode} are not taken") from error
