"""RoIAlign by the kernel against the plain PyTorch form, which other tests hold to torchvision's operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model.inference.kernels.roi_align import pyramid_roi_align
from model.roi_align import multi_scale_roi_align

SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
SHAPES = ((2, 24, 32), (2, 12, 16), (2, 6, 8), (2, 3, 4))  # [N, H, W] of pictures of 96 x 128


def cases(count: int, channels: int, dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randn(*shape, channels, generator=generator).to(dtype) for shape in SHAPES]
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([150.0, 110.0]) - 20
    boxes = torch.cat((corner, corner + 70 * torch.rand(count, 2, generator=generator)), dim=1)
    boxes[0] = torch.tensor([0.0, 0.0, 128.0, 96.0])
    boxes[1] = 0  # as a place without a proposal is
    image_of, level_of = (torch.randint(0, most, (count,), generator=generator) for most in (2, 4))
    return levels, boxes, image_of, level_of


@pytest.mark.parametrize("channels", [8, 13])
@pytest.mark.parametrize("sampling_ratio", [1, 2])
def test_equals_the_reference_inside_outside_and_across_the_border(
    channels: int, sampling_ratio: int, device: torch.device
) -> None:
    levels, boxes, image_of, level_of = cases(8, channels, torch.float32)
    kwargs: dict[str, Any] = {"scales": SCALES, "output_hw": (3, 2), "sampling_ratio": sampling_ratio}
    got = pyramid_roi_align(
        [level.to(device) for level in levels], boxes.to(device), image_of.to(device), level_of.to(device), **kwargs
    )
    wanted = multi_scale_roi_align(levels, boxes, image_of, level_of, **kwargs)
    torch.testing.assert_close(got.cpu(), wanted, rtol=1e-5, atol=1e-5)


def test_half_precision_is_rounded_only_at_the_end(device: torch.device) -> None:
    levels, boxes, image_of, level_of = cases(6, 8, torch.float16)
    kwargs: dict[str, Any] = {"scales": SCALES, "output_hw": (3, 3), "sampling_ratio": 2}
    got = pyramid_roi_align(
        [level.to(device) for level in levels], boxes.to(device), image_of.to(device), level_of.to(device), **kwargs
    )
    assert got.dtype == torch.float16
    exact = multi_scale_roi_align([level.float() for level in levels], boxes, image_of, level_of, **kwargs)
    torch.testing.assert_close(got.cpu().float(), exact, rtol=1e-3, atol=1e-4)


def test_no_boxes_and_other_pyramids(device: torch.device) -> None:
    levels, boxes, image_of, level_of = cases(3, 8, torch.float32)
    kwargs: dict[str, Any] = {"scales": SCALES, "output_hw": (3, 3), "sampling_ratio": 2}
    assert pyramid_roi_align(levels, boxes[:0], image_of[:0], level_of[:0], **kwargs).shape == (0, 9, 8)
    with pytest.raises(ValueError, match="4 levels, not 3"):
        pyramid_roi_align(levels[:3], boxes, image_of, level_of, **kwargs)
