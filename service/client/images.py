"""What callers have for images, to bytes that can be sent."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from service.client.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

# A path; a file's bytes; a Pillow image; or uint8 [H, W], [H, W, 3] (RGB) or [H, W, 4] (RGBA).
ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | npt.NDArray[Any]"

_FAST = 1  # zlib's level: pixels leave within milliseconds, at nearly the size of the slower levels
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


def to_bytes(source: ImageSource) -> bytes:
    """The file to send. Files and bytes go as they are; pixels become PNG, which loses nothing.

    A Pillow image is sent as its pixels stand: a rotation noted in its EXIF data is not applied, so that the boxes fit
    the image that the caller holds. Arrays are RGB, not OpenCV's BGR. Blocking.

    Raises:
        ImageError: a file that cannot be read, an array of another shape or type, something else altogether.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str | os.PathLike):
        return _read(source)
    if isinstance(source, np.ndarray):
        return _png_of_array(source)
    if hasattr(source, "getbands"):  # a Pillow image, recognised without importing Pillow
        return _png(source)
    raise ImageError(f"{type(source).__name__} is no image: give a path, bytes, a Pillow image or a numpy array")


def _read(path: str | os.PathLike[str]) -> bytes:
    if str(path).startswith(("http://", "https://")):
        raise ImageError(f"{path}: the service does not fetch addresses; download the image and give its bytes")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from error


def _png_of_array(array: npt.NDArray[Any]) -> bytes:
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not fits or 0 in array.shape:
        raise ImageError(
            f"an array of {array.dtype} {list(array.shape)} is no image: give uint8 [H, W], or [H, W, 3] in RGB, "
            "or [H, W, 4] in RGBA"
        )
    from PIL import Image

    return _png(Image.fromarray(np.ascontiguousarray(array)))


def _png(image: Image.Image) -> bytes:
    if image.mode == "F":
        raise ImageError(
            "a Pillow image of floating-point numbers (mode F) is no image: scale it to 0..255 and convert it to L"
        )
    buffer = io.BytesIO()
    try:
        # A copy's metadata are emptied, as Pillow would write the orientation into the PNG.
        mode = "I;16" if image.mode == "I" else "RGB"  # which would clip to 255 what 32 bits hold
        pixels = image.copy() if image.mode in _PNG_MODES else image.convert(mode)
        pixels.info = {}
        pixels.save(buffer, "PNG", compress_level=_FAST)
    except Exception as error:  # Pillow decodes a lazily opened file now, and raises whatever its bytes lead it to
        raise ImageError(f"the image cannot be read: {error}") from error
    return buffer.getvalue()


def check_several(images: object) -> None:
    """Tell one path, whose characters would be taken for paths, from several.

    Raises:
        TypeError
    """
    if isinstance(images, str | bytes | os.PathLike):
        raise TypeError("detect_many takes several images: put a single one into a list")
