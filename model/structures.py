"""The few shapes of data that travel between the detector's parts.

Glossary, used throughout `model/`:

    N images in a batch, L pyramid levels, A anchors per grid cell, R regions (proposals), K classes
    (class 0 is the background), G ground-truth boxes.
    Boxes are float `[..., 4]` as (x1, y1, x2, y2) in pixels, with x to the right and y downwards.
    Sizes are (height, width), always in this order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NotRequired, TypedDict

from torch import Tensor

SizeHW = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Images zero-padded to one size, and the size each had before the padding.

    The field names are those of torchvision's `ImageList`, so that anchor generators written for it work here.
    """

    tensors: Tensor  # [N, C, H, W], normalised, H and W multiples of the size divisor
    image_sizes: list[SizeHW]  # (height, width) of each image after the resize and before the padding


class Detection(TypedDict):
    """What the detector says about one image, best score first."""

    boxes: Tensor  # [D, 4] in pixels of the image
    labels: Tensor  # [D] int64, 1..K-1
    scores: Tensor  # [D] in (0, 1]


class Target(TypedDict):
    """The ground truth of one image, as the losses need it. Further keys travel along untouched."""

    boxes: Tensor  # [G, 4] float, in pixels of the image
    labels: Tensor  # [G] int64, 1..K-1
    image_id: NotRequired[Tensor]


def score_text(score: float) -> str:
    """A score for people: two digits, rounded down.

    0.9995 is not certain, and a score below a threshold never reads as equal to it.
    """
    # Six digits first, as in the API: 0.9 is 0.89999998 in float32.
    return f"{round(score * 1_000_000) // 10_000 / 100:.2f}"
