"""RoIAlign over a pyramid: a fixed grid of features for each proposal, from the level that suits its size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from model.roi_align import multi_scale_roi_align
from model.structures import SizeHW


class MultiScaleRoIAlign(nn.Module):
    """Average bilinear samples of the feature maps on a grid over each proposal (Mask R-CNN paper, section 3).

    Nothing is max-pooled, and nothing is rounded to the grid of the feature map. Pooled is by torchvision's operator,
    but in training mode on a CPU, where that one is slow, by `multi_scale_roi_align`: equal within rounding.

    Args:
        featmap_names: the levels to pool from; "pool" is usually left to the RPN.
        output_size: cells of the grid, (height, width) or one number for both.
        sampling_ratio: samples per cell and direction.
        canonical_scale: side in pixels of the proposal that belongs to `canonical_level`.
        canonical_level: k0 of the FPN paper's Eqn. (1).
    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: int | Sequence[int],
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        self.featmap_names = list(featmap_names)
        height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
        self.output_size = (height, width)
        self.sampling_ratio = sampling_ratio
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level
        self.scales: tuple[float, ...] | None = None

    def pin_scales(self, strides: Sequence[int]) -> None:
        """Fix the levels' scales to 1 / stride instead of inferring them from the first batch."""
        self.scales = tuple(1 / stride for stride in strides)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: Sequence[SizeHW]) -> Tensor:
        """Pool each box from its level.

        Like torchvision, the first batch decides the levels' scales, from its heights alone; a first image of 45
        rows or so, padded to 64, doubles them for good. `pin_scales` takes that chance away, and serving does so.

        Args:
            x: the pyramid, `[N, C, h, w]` by name.
            boxes: N times `[R, 4]` in pixels of the resized images.
            image_shapes: sizes of the images before padding.

        Returns:
            `[sum of R, C, *output_size]`, in the order of the boxes.
        """
        features = [level for name, level in x.items() if name in self.featmap_names]
        if not features:
            raise ValueError(f"the pyramid has the levels {list(x)}, none of {self.featmap_names}")
        if self.scales is None:
            self.scales = _infer_scales(features, image_shapes)
        if len(self.scales) != len(features):
            raise ValueError(f"{len(self.scales)} scales are set for {len(features)} levels")
        rois = _with_image_index(boxes).detach()  # [sum of R, 5]; where they lie has no gradient, as in torchvision
        levels = self.levels_of(rois[:, 1:], self.scales)
        if self.training and rois.device.type == "cpu" and self.sampling_ratio > 0:
            # The operator's gradients are computed by one core, and take longer than all else.
            pooled = multi_scale_roi_align(
                [feature.to(rois.dtype).permute(0, 2, 3, 1) for feature in features],
                rois[:, 1:],
                rois[:, 0].to(torch.int64),
                levels,
                scales=self.scales,
                output_hw=self.output_size,
                sampling_ratio=self.sampling_ratio,
            )
            pooled = pooled.transpose(1, 2).view(-1, pooled.shape[2], *self.output_size)
            return pooled.to(features[0].dtype)
        pooled = rois.new_zeros((rois.shape[0], features[0].shape[1], *self.output_size))
        for level, (feature, scale) in enumerate(zip(features, self.scales, strict=True)):
            (members,) = torch.where(levels == level)
            pooled[members] = roi_align(
                feature.to(rois.dtype), rois[members], self.output_size, scale, self.sampling_ratio
            )
        return pooled.to(features[0].dtype)

    def levels_of(self, boxes: Tensor, scales: Sequence[float]) -> Tensor:
        """Which of the pooled levels each box belongs to; `[R, 4]` to int64 `[R]` (Eqn. (1) in the FPN paper)."""
        coarsest_k, finest_k = -math.log2(scales[-1]), -math.log2(scales[0])
        side = torch.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        # 1e-6 keeps a box of exactly the canonical scale from falling a level through rounding.
        k = torch.floor(self.canonical_level + torch.log2(side / self.canonical_scale) + 1e-6)
        return (k.clamp(finest_k, coarsest_k) - finest_k).to(torch.int64)

    def extra_repr(self) -> str:
        return (
            f"featmap_names={self.featmap_names}, output_size={self.output_size}, sampling_ratio={self.sampling_ratio}"
        )


def _infer_scales(features: Sequence[Tensor], image_shapes: Sequence[SizeHW]) -> tuple[float, ...]:
    """The power of two nearest to feature height over image height, per level."""
    tallest = max(height for height, _ in image_shapes)
    return tuple(2.0 ** round(math.log2(feature.shape[-2] / tallest)) for feature in features)


def _with_image_index(boxes: list[Tensor]) -> Tensor:
    """N times `[R, 4]` to `[sum of R, 5]`, each box led by the index of its image."""
    index = torch.cat([b.new_full((b.shape[0], 1), n) for n, b in enumerate(boxes)])
    return torch.cat((index, torch.cat(boxes)), dim=1)
