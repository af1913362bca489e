"""Pictures of several sizes to one batch in one kernel: resized, normalised, zero-padded, channels last."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.structures import SizeHW

# What the kernel has to know of a picture: address, height and width, strides of channel, row and column in bytes,
# height and width to resize to.
_COLUMNS = 8
_BLOCK = 256


def picture_table(pictures: Sequence[Tensor], resized: Sequence[SizeHW]) -> Tensor:
    """`[N, 8]` int64 on the host, for `resize_into`.

    Args:
        pictures: uint8 `[3, H, W]` of any strides; they must stay alive, where they are, until the kernel has run.
        resized: the size that each is to be resized to.
    """
    return torch.tensor(
        [(p.data_ptr(), *p.shape[1:], *p.stride(), *size_hw) for p, size_hw in zip(pictures, resized, strict=True)],
        dtype=torch.int64,
        device="cpu",
    )


def resize_into(batch: Tensor, table: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> None:
    """Fill `batch` as `GeneralizedRCNNTransform` would.

    Args:
        batch: `[N, 3, H, W]`, channels last, of any floating type; written.
        table: see `picture_table`, on the batch's device.
        mean, std: per channel, of values in 0..1.
    """
    count, _, height, width = batch.shape
    if not batch.is_contiguous(memory_format=torch.channels_last):
        raise ValueError("the batch has to lie in memory with its channels last")
    _resize_kernel[(triton.cdiv(height * width, _BLOCK), count)](
        table, batch, height, width, *mean, *std, COLUMNS=_COLUMNS, BLOCK=_BLOCK, num_warps=4, enable_fp_fusion=True
    )


@triton.jit
def _between(at, size):
    """The two positions of an axis that a sample lies between, and the share of the second (not `align_corners`)."""
    at = tl.maximum(at, 0.0)
    before = tl.minimum(at.to(tl.int32), size - 1)
    return before, tl.minimum(before + 1, size - 1), at - before


@triton.jit
def _resize_kernel(
    table, batch, height, width, mean0, mean1, mean2, std0, std1, std2,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    picture = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = pixel // width
    x = pixel % width
    row = table + picture * COLUMNS
    source = tl.load(row).to(tl.pointer_type(tl.uint8))
    source_h = tl.load(row + 1).to(tl.int32)
    source_w = tl.load(row + 2).to(tl.int32)
    of_channel = tl.load(row + 3)
    of_row = tl.load(row + 4)
    of_column = tl.load(row + 5)
    resized_h = tl.load(row + 6).to(tl.int32)
    resized_w = tl.load(row + 7).to(tl.int32)
    is_inside = (y < resized_h) & (x < resized_w)
    # Divided as torch does: the faster division would move the samples.
    step_y = tl.div_rn(source_h.to(tl.float32), resized_h.to(tl.float32))
    step_x = tl.div_rn(source_w.to(tl.float32), resized_w.to(tl.float32))
    above, below, on_below = _between((y + 0.5) * step_y - 0.5, source_h)
    left, right, on_right = _between((x + 0.5) * step_x - 0.5, source_w)
    above_left = source + above * of_row + left * of_column
    above_right = source + above * of_row + right * of_column
    below_left = source + below * of_row + left * of_column
    below_right = source + below * of_row + right * of_column
    target = batch + (picture * height * width + pixel) * 3
    for channel in tl.static_range(3):
        offset = channel * of_channel
        upper = _pixel(above_left + offset, is_inside) * (1 - on_right)
        upper += _pixel(above_right + offset, is_inside) * on_right
        lower = _pixel(below_left + offset, is_inside) * (1 - on_right)
        lower += _pixel(below_right + offset, is_inside) * on_right
        value = (upper * (1 - on_below) + lower * on_below) / 255
        mean = mean0 if channel == 0 else (mean1 if channel == 1 else mean2)
        std = std0 if channel == 0 else (std1 if channel == 1 else std2)
        value = tl.where(is_inside, (value - mean) / std, 0.0)
        tl.store(target + channel, value.to(batch.dtype.element_ty), mask=pixel < height * width)


@triton.jit
def _pixel(address, is_inside):
    return tl.load(address, mask=is_inside, other=0).to(tl.float32)
