"""Non-maximum suppression of many groups of boxes at once, without telling the host how many are left."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 64
_BLOCKS_OF_ONE_WARP = 16


def nms_mask(boxes: Tensor, valid: Tensor, threshold: float, *, labels: Tensor | None = None) -> Tensor:
    """Which boxes greedy suppression keeps: those that no kept box before them overlaps too much.

    Many programs find which boxes overlap, as bits; then one program a group scans the bits in blocks of 64 boxes.
    Within a block, "kept unless a kept one before me overlaps me" is applied until nothing changes, which is what going
    one by one gives.

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
    blocks = triton.cdiv(count, _BLOCK)
    # Bit e of [group, block, box] is set where box e of the block overlaps the box and comes before it. What neither
    # half needs is not written.
    overlaps = torch.empty(groups, blocks, blocks * _BLOCK, dtype=torch.int64, device=boxes.device)
    valid_bytes = valid.contiguous().view(torch.int8)
    _overlap_kernel[(blocks, blocks, groups)](
        boxes.contiguous(),
        valid_bytes,
        (valid if labels is None else labels).contiguous(),  # not read without labels
        overlaps,
        count,
        blocks,
        threshold,
        HAS_LABELS=labels is not None,
        BLOCK=_BLOCK,
        num_warps=4,
        enable_fp_fusion=False,  # each operation rounds, as in the reference: fusing decides ties differently
    )
    most_blocks = triton.next_power_of_2(blocks)
    _scan_kernel[(groups,)](
        valid_bytes,
        overlaps,
        keep.view(torch.int8),
        count,
        blocks,
        BLOCKS=most_blocks,
        BLOCK=_BLOCK,
        num_warps=1 if most_blocks <= _BLOCKS_OF_ONE_WARP else 4,  # one warp needs no barriers
    )
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


@triton.jit(do_not_specialize=["count", "blocks"])
def _overlap_kernel(
    boxes, valid, labels, overlaps, count, blocks, threshold,
    HAS_LABELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program for a block of boxes, a block that suppresses them, and a group."""
    later = tl.program_id(0)
    earlier = tl.program_id(1)
    group = tl.program_id(2).to(tl.int64)
    within = tl.arange(0, BLOCK)
    a = earlier * BLOCK + within
    b = later * BLOCK + within
    is_needed = tl.max(tl.load(valid + group * count + b, mask=b < count, other=0), axis=0) > 0
    if (earlier <= later) & is_needed:
        boxes += group * count * 4
        ax1, ay1, ax2, ay2 = _corners(boxes, a, count)
        bx1, by1, bx2, by2 = _corners(boxes, b, count)
        suppresses = _overlap(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2) > threshold
        suppresses &= a[:, None] < b[None, :]
        if HAS_LABELS:
            a_label = tl.load(labels + group * count + a, mask=a < count, other=-1)
            b_label = tl.load(labels + group * count + b, mask=b < count, other=-1)
            suppresses &= a_label[:, None] == b_label[None, :]
        bit = tl.full([BLOCK], 1, tl.int64) << within.to(tl.int64)
        word = tl.sum(tl.where(suppresses, bit[:, None], 0), axis=0)  # of different bits: their union
        tl.store(overlaps + (group * blocks + earlier) * blocks * BLOCK + b, word)


@triton.jit(do_not_specialize=["count", "blocks"])
def _scan_kernel(valid, overlaps, keep, count, blocks, BLOCKS: tl.constexpr, BLOCK: tl.constexpr):
    """One program for a group."""
    group = tl.program_id(0).to(tl.int64)
    valid += group * count
    keep += group * count
    overlaps += group * blocks * blocks * BLOCK
    within = tl.arange(0, BLOCK)
    bit = tl.full([BLOCK], 1, tl.int64) << within.to(tl.int64)
    block_of = tl.arange(0, BLOCKS)
    at = block_of[:, None] * BLOCK + within[None, :]
    is_valid = tl.load(valid + at, mask=at < count, other=0)
    last = tl.max(tl.max(tl.where(is_valid > 0, at + 1, 0), axis=1), axis=0)
    used = (last + BLOCK - 1) // BLOCK  # behind the last valid box there is nothing to do
    kept_of = tl.zeros([BLOCKS], tl.int64)  # per block, the bits of the kept boxes
    for block in range(used):
        box = block * BLOCK + within
        # 1. What no kept box of an earlier block overlaps too much.
        before = tl.load(
            overlaps + block_of[:, None] * (blocks * BLOCK) + box[None, :], mask=block_of[:, None] < block, other=0
        )
        hit = tl.max(tl.where((before & kept_of[:, None]) != 0, 1, 0), axis=0)
        candidate = tl.load(valid + box, mask=box < count, other=0).to(tl.int32) * (1 - hit)
        # 2. Of these, what no kept box of the same block overlaps too much. Each round makes at least one more right.
        own = tl.load(overlaps + block * (blocks * BLOCK) + box)
        kept = tl.sum(tl.where(candidate > 0, bit, 0), axis=0)
        changes = tl.sum(candidate, axis=0)
        while changes > 0:
            still = tl.sum(tl.where((candidate > 0) & ((own & kept) == 0), bit, 0), axis=0)
            changes = tl.where(still != kept, 1, 0)
            kept = still
        kept_of = tl.where(block_of == block, kept, kept_of)
        tl.store(keep + box, tl.where((bit & kept) != 0, 1, 0).to(tl.int8), mask=box < count)
    tl.store(keep + at, tl.zeros([BLOCKS, BLOCK], tl.int8), mask=(at >= used * BLOCK) & (at < count))
