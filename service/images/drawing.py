"""Boxes, names and scores drawn onto a picture."""

from __future__ import annotations

import colorsys
import io
import math
import zlib
from collections.abc import Sequence
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from service.errors import BadParameterError
from service.images.pictures import Picture

DrawnFormat = Literal["JPEG", "PNG"]
# A strip a million pixels long is no reason for letters of ten thousand.
_LARGEST_SIDE_TO_SCALE_WITH = 6000
_LONGEST_JPEG_SIDE = 65_500
# Run lengths alone take a photograph a third of zlib's usual time, and no more bytes: PNG's filters do the rest.
_OPTIONS: dict[DrawnFormat, dict[str, int]] = {
    "JPEG": {"quality": 90},
    "PNG": {"compress_level": 1, "compress_type": zlib.Z_RLE},
}
# In times of decoding a pixel of a plain JPEG.
_WORK_OF_PIXEL: dict[DrawnFormat, int] = {"JPEG": 4, "PNG": 25}
_WORK_OF_BOX = 24_000  # its outline and its caption: about 0.35 ms
Color = tuple[int, int, int]


def drawing_work(image_format: DrawnFormat, size_hw: tuple[int, int], *, boxes: int) -> int:
    """What drawing boxes on a picture and writing its file takes, in pixels of a plain JPEG to decode."""
    return _WORK_OF_PIXEL[image_format] * math.prod(size_hw) + _WORK_OF_BOX * boxes


def draw(
    picture: Picture, boxes: Sequence[Sequence[float]], labels: Sequence[int], captions: Sequence[str]
) -> Image.Image:
    """The picture with each box outlined in its class's colour and captioned; best drawn last, so on top.

    Args:
        picture: what was detected in.
        boxes: D times xyxy in pixels.
        labels: D classes, which decide the colours.
        captions: D texts.
    """
    image = picture.to_pil()
    canvas = ImageDraw.Draw(image)
    # Legible on a thumbnail and on a 4,000 px photograph alike.
    side = min(max(image.size), _LARGEST_SIDE_TO_SCALE_WITH)
    line = max(2, round(side / 400))
    font = ImageFont.load_default(size=max(11, round(side / 60)))
    for box, label, caption in reversed(list(zip(boxes, labels, captions, strict=True))):
        color = class_color(label)
        x1, y1, x2, y2 = box
        canvas.rectangle((x1, y1, x2, y2), outline=color, width=line)
        _caption(canvas, caption, (x1, y1), font, color, image.size)
    return image


def encode(image: Image.Image, image_format: DrawnFormat) -> bytes:
    """The file.

    Raises:
        BadParameterError: a JPEG cannot be that large.
        MemoryError
    """
    if image_format == "JPEG" and max(image.size) > _LONGEST_JPEG_SIDE:
        raise BadParameterError(f"a JPEG has at most {_LONGEST_JPEG_SIDE:,} pixels a side; ask for image/png")
    buffer = io.BytesIO()
    try:
        image.save(buffer, image_format, **_OPTIONS[image_format])
    except OSError as error:
        if "when writing image file" not in str(error):
            raise
        # The encoder failed. The image is sound, so memory is short.
        raise MemoryError("there is no memory left to write the picture") from error
    return buffer.getvalue()


def class_color(label: int) -> Color:
    """A strong colour for a class, far from those of its neighbours: hues a golden section apart."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1.0, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _caption(
    canvas: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[float, float],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    color: Color,
    size_wh: tuple[int, int],
) -> None:
    """A filled plate above the box's corner, moved inside where the picture ends."""
    pad = 2
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = max(0.0, min(corner[0], size_wh[0] - width))
    y = max(0.0, min(corner[1] - height, size_wh[1] - height))
    canvas.rectangle((x, y, x + width, y + height), fill=color)
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    canvas.text((x + pad - left, y + pad - top), text, font=font, fill="black" if luminance > 128 else "white")
