"""Suppression in plain PyTorch: what the kernel has to give, and what stands in for it where no kernel runs."""

from __future__ import annotations

import torch
from torch import Tensor


def reference_nms_mask(boxes: Tensor, valid: Tensor, threshold: float, *, labels: Tensor | None = None) -> Tensor:
    """What `nms_mask` keeps, in plain PyTorch, box by box."""
    corner = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    sides = (torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:]) - corner).clamp(min=0)
    shared = sides.prod(-1)
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    suppresses = shared / (area[:, :, None] + area[:, None, :] - shared) > threshold  # [G, n, n]
    if labels is not None:
        suppresses &= labels[:, :, None] == labels[:, None, :]
    keep = valid.clone()
    for later in range(1, valid.shape[1]):
        keep[:, later] &= ~(suppresses[:, :later, later] & keep[:, :later]).any(1)
    return keep
