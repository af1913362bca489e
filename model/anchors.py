"""Anchors: the fixed grid of reference boxes that the RPN's deltas are relative to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.boxes import at_least_float32
from model.structures import ImageBatch, SizeHW


class AnchorGenerator(nn.Module):
    """Anchors of several sizes and aspect ratios at every cell of every feature map.

    Args:
        sizes: per feature map, the anchors' sizes: the square root of their area, in pixels of the padded image.
            A flat sequence gives each feature map one size.
        aspect_ratios: per feature map, height / width. A flat sequence serves every feature map.
    """

    def __init__(
        self,
        sizes: Sequence[int] | Sequence[Sequence[int]] = ((128, 256, 512),),
        aspect_ratios: Sequence[float] | Sequence[Sequence[float]] = ((0.5, 1.0, 2.0),),
    ) -> None:
        super().__init__()
        self.sizes = tuple(tuple(s) if isinstance(s, Sequence) else (s,) for s in sizes)
        nested = [tuple(r) for r in aspect_ratios if isinstance(r, Sequence)]
        flat = tuple(r for r in aspect_ratios if not isinstance(r, Sequence))
        self.aspect_ratios = tuple(nested) or (flat,) * len(self.sizes)
        if len(self.sizes) != len(self.aspect_ratios):
            raise ValueError(
                f"anchor sizes are given for {len(self.sizes)} feature maps, "
                f"aspect ratios for {len(self.aspect_ratios)}"
            )
        self.cell_anchors = [cell_anchors(s, r) for s, r in zip(self.sizes, self.aspect_ratios, strict=True)]

    def num_anchors_per_location(self) -> list[int]:
        """A, for each feature map."""
        return [len(s) * len(r) for s, r in zip(self.sizes, self.aspect_ratios, strict=True)]

    def forward(self, image_list: ImageBatch, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors of each image: N times the same `[sum of H*W*A over the levels, 4]` tensor.

        Ordered by level, then row, then column, then the A anchors of the cell: the order in which the RPN
        flattens its predictions.

        Raises:
            ValueError: if there are not as many feature maps as sizes.
        """
        if len(feature_maps) != len(self.cell_anchors):
            raise ValueError(
                f"the anchor generator has sizes for {len(self.cell_anchors)} feature maps "
                f"and was given {len(feature_maps)}"
            )
        image_h, image_w = image_list.tensors.shape[-2:]
        per_level = []
        for feature_map, cell in zip(feature_maps, self.cell_anchors, strict=True):
            grid_h, grid_w = feature_map.shape[-2:]
            # The stride is the padded size over the grid, rounded down: 61 and not 64 for 800 rows in 13 cells.
            stride = (image_h // grid_h, image_w // grid_w)
            dtype = at_least_float32(feature_map.new_empty(0)).dtype
            per_level.append(grid_anchors(cell.to(feature_map.device, dtype), (grid_h, grid_w), stride))
        return [torch.cat(per_level)] * len(image_list.image_sizes)


def cell_anchors(sizes: Sequence[int], aspect_ratios: Sequence[float]) -> Tensor:
    """Anchors around the origin, rounded to whole pixels; `[len(aspect_ratios) * len(sizes), 4]`, ratio-major.

    An anchor of size s and ratio r is s * sqrt(r) high and s / sqrt(r) wide, so its area is s squared.
    """
    ratios = torch.as_tensor(aspect_ratios, dtype=torch.float32)
    height_factors = torch.sqrt(ratios)
    width_factors = 1 / height_factors
    scales = torch.as_tensor(sizes, dtype=torch.float32)
    heights = (height_factors[:, None] * scales[None, :]).flatten()
    widths = (width_factors[:, None] * scales[None, :]).flatten()
    return (torch.stack((-widths, -heights, widths, heights), dim=1) / 2).round()


def grid_anchors(cell: Tensor, grid_hw: SizeHW, stride_hw: SizeHW) -> Tensor:
    """`cell` anchors `[A, 4]` shifted to every cell of a grid; `[H * W * A, 4]`, row-major."""
    (grid_h, grid_w), (stride_y, stride_x) = grid_hw, stride_hw
    shift_y = torch.arange(grid_h, device=cell.device, dtype=cell.dtype) * stride_y
    shift_x = torch.arange(grid_w, device=cell.device, dtype=cell.dtype) * stride_x
    y, x = torch.meshgrid(shift_y, shift_x, indexing="ij")
    shifts = torch.stack((x, y, x, y), dim=-1)  # [H, W, 4]
    return (shifts[:, :, None, :] + cell).reshape(-1, 4)
