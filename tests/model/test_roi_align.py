"""Our RoIAlign against torchvision's, on levels of any size and boxes anywhere."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import roi_align

from model.roi_align import multi_scale_roi_align
from model.structures import SizeHW

SCALES = (1 / 4, 1 / 8)
SHAPES = ((2, 16, 24, 5), (2, 8, 12, 5))  # [N, H, W, C]


def oracle(
    levels: list[Tensor], boxes: Tensor, image_of: Tensor, level_of: Tensor, output_hw: SizeHW, sampling_ratio: int
) -> Tensor:
    rows = []
    for box, image, level in zip(boxes, image_of.tolist(), level_of.tolist(), strict=True):
        roi = torch.cat((torch.tensor([float(image)]), box))[None]
        maps = levels[level].permute(0, 3, 1, 2)
        rows.append(roi_align(maps, roi, output_hw, SCALES[level], sampling_ratio))
    return torch.cat(rows).flatten(2).transpose(1, 2)


def levels_of_noise(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


coordinate = st.floats(-30, 130, width=32, allow_nan=False)
box = st.tuples(coordinate, coordinate, st.floats(0, 120, width=32), st.floats(0, 80, width=32))


@settings(max_examples=80)
@given(st.lists(st.tuples(box, st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=6), st.integers(1, 3))
def test_equals_torchvision_inside_outside_and_across_the_border(cases: Any, sampling_ratio: int) -> None:
    boxes = torch.tensor([(x, y, x + w, y + h) for (x, y, w, h), _, _ in cases])
    image_of = torch.tensor([image for _, image, _ in cases])
    level_of = torch.tensor([level for _, _, level in cases])
    levels = levels_of_noise()
    got = multi_scale_roi_align(
        levels, boxes, image_of, level_of, scales=SCALES, output_hw=(3, 2), sampling_ratio=sampling_ratio
    )
    wanted = oracle(levels, boxes, image_of, level_of, (3, 2), sampling_ratio)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_no_boxes_give_no_rows() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    got = multi_scale_roi_align(
        levels_of_noise(), torch.zeros(0, 4), none, none, scales=SCALES, output_hw=(7, 7), sampling_ratio=2
    )
    assert got.shape == (0, 49, 5)


def test_half_precision_stays_near() -> None:
    boxes = torch.tensor([[3.0, 5.0, 60.0, 40.0], [0.0, 0.0, 95.0, 63.0]])
    where = (torch.tensor([0, 1]), torch.tensor([1, 0]))
    kwargs: dict[str, Any] = {"scales": SCALES, "output_hw": (7, 7), "sampling_ratio": 2}
    levels = levels_of_noise(torch.bfloat16)
    got = multi_scale_roi_align(levels, boxes, *where, **kwargs)
    assert got.dtype == torch.bfloat16
    wanted = multi_scale_roi_align([level.float() for level in levels], boxes, *where, **kwargs)
    torch.testing.assert_close(got.float(), wanted, rtol=0.02, atol=0.02)
