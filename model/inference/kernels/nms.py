"""Non-maximum suppression of many groups of boxes at once, without telling the host how many are left."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 64


def nms_mask(boxes: Tensor, valid: Tensor, threshold: float, *, labels: Tensor | None = None) -> Tensor:
    """Which boxes greedy suppression keeps: those that no kept box before them overlaps too much.

    The kernel goes through a group in blocks of 64. Within a block, "kept unless a kept one before me overlaps me" is
    applied until nothing changes, which is what going one by one gives; then the block's survivors suppress all later
    boxes at once.

    Args:
        boxes: `[G, n, 4]` xyxy float32, in each group best first.
        valid: `[G, n]` bool; others are neither kept nor suppress.
        threshold: intersection over union above which the later box goes.
        labels: `[G, n]` int32; boxes with different labels leave each other alone.

    Returns:
        `[G, n]` bool.
    """
    groups, count = valid.shape
    keep = torch.empty(groups, count, dtype=torch.bool, device=boxes.device)
    if keep.numel() == 0:
        return keep
    _nms_kernel[(groups,)](
        boxes.contiguous(),
        valid.contiguous().view(torch.int8),
        (valid if labels is None else labels).contiguous(),  # not read without labels
        keep.view(torch.int8),
        count,
        threshold,
        HAS_LABELS=labels is not None,
        BLOCKS=triton.next_power_of_2(triton.cdiv(count, _BLOCK)),
        BLOCK=_BLOCK,
        num_warps=8,
        enable_fp_fusion=True,
    )
    return keep


def reference_nms_mask(boxes: Tensor, valid: Tensor, threshold: float, *, labels: Tensor | None = None) -> Tensor:
    """The same in plain PyTorch, box by box."""
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


@triton.jit
def _corners(boxes, at, count):
    """x1, y1, x2, y2 of the boxes at these places of a group; behind its end, 0."""
    row = boxes + at * 4
    is_box = at < count
    return (
        tl.load(row, mask=is_box, other=0.0),
        tl.load(row + 1, mask=is_box, other=0.0),
        tl.load(row + 2, mask=is_box, other=0.0),
        tl.load(row + 3, mask=is_box, other=0.0),
    )


@triton.jit
def _overlap(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2):
    """Intersection over union of every a with every b; without area, 0."""
    width = tl.minimum(ax2[:, None], bx2[None, :]) - tl.maximum(ax1[:, None], bx1[None, :])
    height = tl.minimum(ay2[:, None], by2[None, :]) - tl.maximum(ay1[:, None], by1[None, :])
    shared = tl.maximum(width, 0.0) * tl.maximum(height, 0.0)
    a_area = (ax2 - ax1) * (ay2 - ay1)
    b_area = (bx2 - bx1) * (by2 - by1)
    union = a_area[:, None] + b_area[None, :] - shared
    # Rounded as in IEEE 754, as torchvision's operator is: the fast division would decide ties differently.
    return tl.div_rn(shared, tl.where(union > 0, union, 1.0))


@triton.jit
def _nms_kernel(
    boxes, valid, labels, keep, count, threshold,
    HAS_LABELS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64)
    boxes += group * count * 4
    within = tl.arange(0, BLOCK)
    block_of = tl.arange(0, BLOCKS)[:, None]
    at = block_of * BLOCK + within[None, :]
    alive = tl.load(valid + group * count + at, mask=at < count, other=0).to(tl.int32)  # [BLOCKS, BLOCK]
    last = tl.max(tl.max(tl.where(alive > 0, at + 1, 0), axis=1), axis=0)
    blocks = (last + BLOCK - 1) // BLOCK  # behind the last valid box there is nothing to do
    for block in range(blocks):
        a = block * BLOCK + within
        ax1, ay1, ax2, ay2 = _corners(boxes, a, count)
        suppresses = _overlap(ax1, ay1, ax2, ay2, ax1, ay1, ax2, ay2) > threshold
        if HAS_LABELS:
            a_label = tl.load(labels + group * count + a, mask=a < count, other=-1)
            suppresses &= a_label[:, None] == a_label[None, :]
        suppresses &= within[:, None] < within[None, :]
        candidates = tl.sum(tl.where(block_of == block, alive, 0), axis=0)  # [BLOCK]
        kept = candidates
        changes = tl.sum(candidates, axis=0)
        while changes > 0:
            hit = tl.max(tl.where(suppresses, kept[:, None], 0), axis=0)
            still = candidates * (1 - hit)
            changes = tl.sum(tl.where(still != kept, 1, 0), axis=0)
            kept = still
        alive = tl.where(block_of == block, kept[None, :], alive)
        for later in range(block + 1, blocks):
            b = later * BLOCK + within
            bx1, by1, bx2, by2 = _corners(boxes, b, count)
            suppresses = _overlap(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2) > threshold
            if HAS_LABELS:
                b_label = tl.load(labels + group * count + b, mask=b < count, other=-1)
                suppresses &= a_label[:, None] == b_label[None, :]
            hit = tl.max(tl.where(suppresses, kept[:, None], 0), axis=0)
            alive = tl.where(block_of == later, alive * (1 - hit[None, :]), alive)
    tl.store(keep + group * count + at, alive.to(tl.int8), mask=at < count)
