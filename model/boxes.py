"""Pure geometry of boxes: area, overlap, clipping, scaling. Boxes are xyxy in pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from model.structures import SizeHW


def at_least_float32(values: Tensor) -> Tensor:
    """Lift half precision to float32: coordinates beyond 256 px lose whole pixels in bfloat16."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def box_area(boxes: Tensor) -> Tensor:
    """Area in square pixels; `[..., 4]` to `[...]`."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of every pair; `[..., M, 4]` and `[..., N, 4]` to `[..., M, N]`."""
    boxes1, boxes2 = at_least_float32(boxes1)[..., :, None, :], at_least_float32(boxes2)[..., None, :, :]
    top_left = torch.maximum(boxes1[..., :2], boxes2[..., :2])  # [..., M, N, 2]
    bottom_right = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])  # [..., M, N, 2]
    width, height = (bottom_right - top_left).clamp(min=0).unbind(-1)  # [..., M, N] each
    intersection = width * height
    union = box_area(boxes1) + box_area(boxes2) - intersection
    return intersection / union


def vote_boxes(
    kept: Tensor, kept_labels: Tensor, boxes: Tensor, labels: Tensor, scores: Tensor, min_iou: float
) -> Tensor:
    """Box voting (Gidaris and Komodakis 2015): boxes that suppression kept, moved to where the dropped ones say too.

    Each becomes the mean, weighted by score, of the candidates of its class that overlap it, itself among them. Takes
    time and memory for `D * M` overlaps.

    Args:
        kept, kept_labels: `[..., D, 4]` and `[..., D]`.
        boxes, labels, scores: of all candidates, `[..., M, 4]`, `[..., M]` and `[..., M]`; 0 or less is no vote.
        min_iou: overlap from which a candidate has one.

    Returns:
        `[..., D, 4]`; a box without votes stays.
    """
    votes = scores > 0
    boxes = boxes.where(votes[..., None], 0.0)  # what has no vote may be no number
    agree = (box_iou(kept, boxes) >= min_iou) & (kept_labels[..., :, None] == labels[..., None, :])
    # In float64, since neither TF32 nor autocast shortens this product.
    weights = agree * scores.where(votes, 0.0).double()[..., None, :]
    total = weights.sum(-1, keepdim=True)
    means = weights @ boxes.double() / total.where(total > 0, 1.0)
    return means.to(kept.dtype).where(total > 0, kept)


def clip_boxes(boxes: Tensor, size_hw: SizeHW) -> Tensor:
    """Move corners that lie outside an image of `size_hw` onto its border; any `[..., 4]`."""
    height, width = size_hw
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), dim=-1)


def sides_at_least(boxes: Tensor, min_side: float) -> Tensor:
    """Which boxes have both sides of `min_side` pixels or more; `[..., 4]` to bool `[...]`."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return (width >= min_side) & (height >= min_side)


def scale_boxes(boxes: Tensor, from_hw: SizeHW, to_hw: SizeHW) -> Tensor:
    """Carry boxes from an image of size `from_hw` to the same image resized to `to_hw`; any `[..., 4]`.

    The ratio is a quotient of float32 numbers, as in torchvision's `resize_boxes`.
    """
    to, before = (torch.tensor(size_hw, dtype=torch.float32, device="cpu") for size_hw in (to_hw, from_hw))
    ratio_y, ratio_x = (to / before).tolist()
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((x1 * ratio_x, y1 * ratio_y, x2 * ratio_x, y2 * ratio_y), dim=-1)
