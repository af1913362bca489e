"""RoIAlign over all levels of a pyramid in one kernel, each box from its own level, channels last."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_LEVELS = 4


def pyramid_roi_align(
    levels: Sequence[Tensor],
    boxes: Tensor,
    image_of: Tensor,
    level_of: Tensor,
    *,
    scales: Sequence[float],
    output_hw: tuple[int, int],
    sampling_ratio: int,
) -> Tensor:
    """See `model.roi_align.multi_scale_roi_align`, the reference: its arguments and its result.

    Raises:
        ValueError: not four levels.
    """
    if len(levels) != _LEVELS:
        raise ValueError(f"the kernel is written for {_LEVELS} levels, not {len(levels)}")
    levels = [level.contiguous() for level in levels]
    channels = levels[0].shape[-1]
    out_h, out_w = output_hw
    pooled = torch.empty(len(boxes), out_h * out_w, channels, dtype=levels[0].dtype, device=boxes.device)
    if pooled.numel() == 0:
        return pooled
    sizes = [size for level, scale in zip(levels, scales, strict=True) for size in (*level.shape[1:3], scale)]
    _roi_align_kernel[(len(boxes), out_h)](
        *levels,
        *sizes,
        boxes.contiguous(),
        image_of.contiguous(),
        level_of.contiguous(),
        pooled,
        channels,
        OUT_H=out_h,
        OUT_W=out_w,
        SAMPLES=sampling_ratio,
        BLOCK=triton.next_power_of_2(channels),
        num_warps=4,
        enable_fp_fusion=True,
    )
    return pooled


@triton.jit
def _sample(at, size):
    """The two positions of an axis that a sample lies between, and its weights on them."""
    is_inside = (at >= -1.0) & (at <= size)  # samples further out count as zero
    last = size - 1
    at = tl.maximum(at, 0.0)
    before = tl.minimum(tl.floor(at).to(tl.int32), last)
    after = tl.minimum(before + 1, last)
    share = tl.where(before >= last, 0.0, at - before)
    return before, after, tl.where(is_inside, 1.0 - share, 0.0), tl.where(is_inside, share, 0.0)


# A size of 1 is no constant to compile for: it takes turns with the other levels' sizes.
@triton.jit(do_not_specialize=[f"{side}{level}" for level in range(_LEVELS) for side in ("height", "width")])
def _roi_align_kernel(
    level0, level1, level2, level3,
    height0, width0, scale0, height1, width1, scale1, height2, width2, scale2, height3, width3, scale3,
    boxes, image_of, level_of, pooled, channels,
    OUT_H: tl.constexpr, OUT_W: tl.constexpr, SAMPLES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program for each box and row of its grid."""
    box = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1)
    level = tl.load(level_of + box)
    maps = level0
    height, width, scale = height0, width0, scale0
    if level == 1:
        maps = level1
        height, width, scale = height1, width1, scale1
    if level == 2:
        maps = level2
        height, width, scale = height2, width2, scale2
    if level == 3:
        maps = level3
        height, width, scale = height3, width3, scale3
    x1 = tl.load(boxes + box * 4) * scale
    y1 = tl.load(boxes + box * 4 + 1) * scale
    x2 = tl.load(boxes + box * 4 + 2) * scale
    y2 = tl.load(boxes + box * 4 + 3) * scale
    # Divided as torch does: the faster division would move the samples.
    step_x = tl.div_rn(tl.maximum(x2 - x1, 1.0), OUT_W * 1.0)
    step_y = tl.div_rn(tl.maximum(y2 - y1, 1.0), OUT_H * 1.0)
    channel = tl.arange(0, BLOCK)
    is_channel = channel < channels
    maps += tl.load(image_of + box).to(tl.int64) * height * width * channels + channel
    pooled += (box * OUT_H + row) * OUT_W * channels + channel
    for column in range(OUT_W):
        total = tl.zeros([BLOCK], tl.float32)
        for sample_y in tl.static_range(SAMPLES):
            above, below, on_above, on_below = _sample(y1 + row * step_y + (sample_y + 0.5) * step_y / SAMPLES, height)
            for sample_x in tl.static_range(SAMPLES):
                left, right, on_left, on_right = _sample(
                    x1 + column * step_x + (sample_x + 0.5) * step_x / SAMPLES, width
                )
                total += on_above * on_left * _cell(maps, above * width + left, channels, is_channel)
                total += on_above * on_right * _cell(maps, above * width + right, channels, is_channel)
                total += on_below * on_left * _cell(maps, below * width + left, channels, is_channel)
                total += on_below * on_right * _cell(maps, below * width + right, channels, is_channel)
        mean = total / (SAMPLES * SAMPLES)
        tl.store(pooled + column * channels, mean.to(pooled.dtype.element_ty), mask=is_channel)


@triton.jit
def _cell(maps, cell, channels, is_channel):
    return tl.load(maps + cell * channels, mask=is_channel, other=0.0).to(tl.float32)
