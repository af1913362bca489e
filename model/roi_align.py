"""RoIAlign over all levels of a pyramid at once, as one weighted sum of rows.

R proposals, G cells of the grid per side pair (7x7: 49), S samples per cell and direction, C channels. With channels
last, a bilinear sample is a weighted sum of four rows of C numbers, and a cell is the mean of S * S samples: a weighted
sum of 4 * S * S rows. `embedding_bag` does just that, vectorised over the channels and over the cores, for every
proposal of every level in one call. torchvision's kernel for the CPU walks channel by channel instead. Gradients flow
to the levels, so training on CPUs uses it too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def multi_scale_roi_align(
    levels: Sequence[Tensor],
    boxes: Tensor,
    image_of: Tensor,
    level_of: Tensor,
    *,
    scales: Sequence[float],
    output_hw: tuple[int, int],
    sampling_ratio: int,
) -> Tensor:
    """What torchvision's `roi_align` (not `aligned`) gives each box on its level.

    Args:
        levels: the pyramid, `[N, H, W, C]` each.
        boxes: `[R, 4]` xyxy, in pixels of the images.
        image_of: `[R]`, index of each box's image.
        level_of: `[R]`, index of each box's level.
        scales: of the levels, 1 / stride.
        output_hw: cells of the grid.
        sampling_ratio: S.

    Returns:
        `[R, output height * output width, C]` in the levels' dtype.
    """
    table = torch.cat([level.flatten(0, 2) for level in levels])  # [all cells of all levels and images, C]
    sizes = boxes.new_tensor([(*level.shape[1:3], scale) for level, scale in zip(levels, scales, strict=True)])
    height, width, scale = sizes[level_of].unbind(1)  # [R] each
    cells = [level.shape[0] * level.shape[1] * level.shape[2] for level in levels]
    first_row = torch.tensor([0, *cells[:-1]], device=boxes.device).cumsum(0)[level_of]
    first_row = first_row + image_of * (height * width).to(torch.int64)
    x1, y1, x2, y2 = (boxes * scale[:, None]).unbind(1)
    rows, row_weights = _samples(y1, y2, height, output_hw[0], sampling_ratio)  # [R, out_h, 2 * S]
    columns, column_weights = _samples(x1, x2, width, output_hw[1], sampling_ratio)  # [R, out_w, 2 * S]
    # [R, out_h, out_w, 2 * S, 2 * S]: every cell's rows of the table, and their shares.
    index = rows[:, :, None, :, None] * width.to(torch.int64)[:, None, None, None, None]
    index = index + columns[:, None, :, None, :] + first_row[:, None, None, None, None]
    weight = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    grid = output_hw[0] * output_hw[1]
    bags = (boxes.shape[0] * grid, (2 * sampling_ratio) ** 2)
    pooled = F.embedding_bag(index.view(bags), table, per_sample_weights=weight.view(bags).to(table.dtype), mode="sum")
    return pooled.view(boxes.shape[0], grid, table.shape[1])


def _samples(low: Tensor, high: Tensor, size: Tensor, cells: int, per_cell: int) -> tuple[Tensor, Tensor]:
    """Along one axis: the two grid positions that each sample lies between, and its weights on them.

    Args:
        low, high: `[R]`, where the boxes begin and end, in cells of the level.
        size: `[R]`, how many cells the level has.

    Returns:
        Positions int64 and weights `[R, cells, 2 * per_cell]`; the weights of a cell add up to 1.
    """
    length = (high - low).clamp(min=1.0)
    step = length / cells
    cell = torch.arange(cells, device=low.device, dtype=low.dtype)
    sample = torch.arange(per_cell, device=low.device, dtype=low.dtype)
    at = low[:, None, None] + cell[:, None] * step[:, None, None]
    at = at + (sample + 0.5) * step[:, None, None] / per_cell  # [R, cells, per_cell]
    last = size[:, None, None] - 1
    is_inside = (at >= -1.0) & (at <= size[:, None, None])  # samples further out count as zero
    at = at.clamp(min=0.0)
    before = at.floor().minimum(last)
    after = (before + 1).minimum(last)
    share = torch.where(before >= last, torch.zeros_like(at), at - before)
    weights = torch.stack((1 - share, share), dim=-1) * (is_inside / per_cell)[..., None]
    positions = torch.stack((before, after), dim=-1).to(torch.int64)
    return positions.flatten(2), weights.flatten(2)
