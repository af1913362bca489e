"""What surrounds the convolutions, on maps with their channels last: bias and upsampled level in one pass, max-pool.

cuDNN adds a bias without ReLU in a pass of its own, unvectorised; torch's upsampling and max-pool reach a fifth to a
third of the memory's speed. These kernels read and write 16 bytes a thread and touch each number once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.inference.fused_conv import CudnnLayers, FusedConv

_TILE = 4096  # numbers of a program
_MOST_COLUMNS = 128


class KernelLayers(CudnnLayers):
    """cuDNN's fused convolutions where ReLU follows, elsewhere convolutions without bias and these kernels."""

    channel_multiple = 16  # 15 output channels take an unaligned kernel, several times as long as 16

    def convolve(self, layer: FusedConv, x: Tensor, addend: Tensor | None, coarser: Tensor | None) -> Tensor:
        if layer.relu or addend is not None:
            return super().convolve(layer, x, addend, coarser)
        y = layer.without_bias(x)
        if layer.bias is None and coarser is None:
            return y
        return add_to_maps_(y.contiguous(memory_format=torch.channels_last), layer.bias, coarser)

    def max_pool(self, x: Tensor) -> Tensor:
        return max_pool(x)


def add_to_maps_(maps: Tensor, bias: Tensor | None, coarser: Tensor | None = None) -> Tensor:
    """Add a bias, and coarser maps upsampled to the nearest, in place; rounded once.

    Args:
        maps: `[N, C, H, W]`, channels last; written.
        bias: `[C]`.
        coarser: `[N, C, H / 2, W / 2]`, channels last; each number counts for 2x2 of the maps.

    Returns:
        `maps`.

    Raises:
        ValueError: another shape or order in memory.
    """
    images, channels, height, width = maps.shape
    if coarser is not None and (
        coarser.shape != (images, channels, height // 2, width // 2) or height % 2 or width % 2
    ):
        raise ValueError(f"the coarser maps are {list(coarser.shape)}, not half of {list(maps.shape)}")
    _check_order(maps, *([] if coarser is None else [coarser]))
    if maps.numel() == 0:
        return maps
    block, columns = _tile(channels)
    _add_kernel[(images * height, triton.cdiv(width, columns))](
        maps,
        maps if bias is None else bias,  # what is not there is not read
        maps if coarser is None else coarser,
        width,
        HAS_BIAS=bias is not None,
        HAS_COARSER=coarser is not None,
        CHANNELS=channels,
        COLUMNS=columns,
        BLOCK=block,
        num_warps=4,
    )
    return maps


def max_pool(maps: Tensor) -> Tensor:
    """`F.max_pool2d` with 3x3 windows, stride 2 and padding 1: `[N, C, H, W]`, channels last, to half of its sides.

    Raises:
        ValueError: the channels are not last in memory.
    """
    _check_order(maps)
    images, channels, height, width = maps.shape
    out_h, out_w = (height + 1) // 2, (width + 1) // 2
    pooled = torch.empty(
        images, channels, out_h, out_w, dtype=maps.dtype, device=maps.device, memory_format=torch.channels_last
    )
    if pooled.numel() == 0:
        return pooled
    block, columns = _tile(channels)
    _max_pool_kernel[(images * out_h, triton.cdiv(out_w, columns))](
        maps, pooled, height, width, CHANNELS=channels, COLUMNS=columns, BLOCK=block, num_warps=4
    )
    return pooled


def _check_order(*given: Tensor) -> None:
    if not all(maps.is_contiguous(memory_format=torch.channels_last) for maps in given):
        raise ValueError("maps have to lie in memory with their channels last")


def _tile(channels: int) -> tuple[int, int]:
    """Channels and columns of one program; both powers of two."""
    block = triton.next_power_of_2(channels)
    return block, max(1, min(_MOST_COLUMNS, _TILE // block))


# One compiled kernel for all widths: the channels, a constant, let the compiler see that addresses are aligned.
@triton.jit(do_not_specialize=["width"])
def _add_kernel(
    maps, bias, coarser, width,
    HAS_BIAS: tl.constexpr, HAS_COARSER: tl.constexpr,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program for some columns of one row of all pictures' rows."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    is_inside = (column < width) & (channel < CHANNELS)
    at = row * width * CHANNELS + column * CHANNELS + channel
    value = tl.load(maps + at, mask=is_inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)
    if HAS_COARSER:
        # Heights are even, so that half of a row's number among all pictures' rows is its coarser row's number.
        coarse_at = (row // 2) * (width // 2) * CHANNELS + (column // 2) * CHANNELS + channel
        value += tl.load(coarser + coarse_at, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(maps + at, value.to(maps.dtype.element_ty), mask=is_inside)


@triton.jit(do_not_specialize=["height", "width"])
def _max_pool_kernel(
    maps, pooled, height, width,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program for some columns of one row of all pictures' pooled rows."""
    out_height = (height + 1) // 2
    out_width = (width + 1) // 2
    row = tl.program_id(0).to(tl.int64)
    picture = row // out_height
    top = (row % out_height) * 2 - 1
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    is_channel = channel < CHANNELS
    best = tl.full([COLUMNS, BLOCK], float("-inf"), tl.float32)
    for down in tl.static_range(3):
        y = top + down
        maps_row = (picture * height + y) * width * CHANNELS
        columns = tl.where((y >= 0) & (y < height), width, 0)  # a row outside has none
        for right in tl.static_range(3):
            x = column * 2 - 1 + right
            is_inside = (x >= 0) & (x < columns) & is_channel
            value = tl.load(maps + maps_row + x * CHANNELS + channel, mask=is_inside, other=float("-inf"))
            best = tl.maximum(best, value.to(tl.float32), propagate_nan=tl.PropagateNan.ALL)
    at = row * out_width * CHANNELS + column * CHANNELS + channel
    tl.store(pooled + at, best.to(pooled.dtype.element_ty), mask=(column < out_width) & is_channel)
