"""Resize a large picture from the pixels that bilinear interpolation reads, and leave the others alone.

`GeneralizedRCNNTransform` makes floats of all pixels, normalises them and interpolates. For 8192 x 8192 pixels that is
three copies of 800 MB and 6 seconds, though the result depends on four pixels for each of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.structures import SizeHW


def reads_few_pixels(size_hw: SizeHW, resized_hw: SizeHW) -> bool:
    """Whether interpolation to `resized_hw` reads less than all pixels of a picture of `size_hw`."""
    return 4 * resized_hw[0] * resized_hw[1] < size_hw[0] * size_hw[1]


def sample(image: Tensor, resized_hw: SizeHW, *, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise and resize, as `GeneralizedRCNNTransform` does in float32, within rounding.

    Args:
        image: uint8 `[3, H, W]` of any strides.
        resized_hw: height `h` and width `w` of the result.
        mean, std: `[3, 1, 1]`, of values in 0..1.

    Returns:
        float32 `[3, h, w]`.
    """
    above, below, on_below = _neighbours(image.shape[1], resized_hw[0], image.device)
    left, right, on_right = _neighbours(image.shape[2], resized_hw[1], image.device)
    pixels = image.permute(1, 2, 0)  # as they lie in memory
    read = pixels.index_select(0, torch.cat((above, below))).index_select(1, torch.cat((left, right)))
    read = read.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    read = read.sub_(mean).div_(std)  # [3, 2 h, 2 w]
    width = resized_hw[1]
    across = read[..., :width] * (1 - on_right) + read[..., width:] * on_right
    upper, lower = across.split(resized_hw[0], dim=1)
    on_below = on_below[:, None]
    resized: Tensor = upper * (1 - on_below) + lower * on_below
    return resized


def _neighbours(size: int, resized: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Per position of a resized axis, the two that it lies between in the original one, and the share of the second."""
    step = torch.tensor(size, dtype=torch.float32) / resized
    # Rounded once, as by the fused multiply-add that torch's own loop is compiled to.
    at = (torch.arange(resized, dtype=torch.float64) + 0.5) * step.double() - 0.5
    at = at.float().clamp_(min=0)
    first = at.long().clamp_(max=size - 1)
    second = (first + 1).clamp_(max=size - 1)
    return first.to(device), second.to(device), (at - first).to(device)
