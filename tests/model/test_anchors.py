from __future__ import annotations

import pytest
import torch

from model.anchors import AnchorGenerator, cell_anchors, grid_anchors
from model.structures import ImageBatch


def test_cell_anchors_are_centred_and_rounded() -> None:
    # 32 px at ratio 0.5: 32 * 0.7071 = 22.6 high and 45.3 wide.
    assert cell_anchors((32,), (0.5, 1.0, 2.0)).tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]


def test_cell_anchors_go_through_the_sizes_of_each_ratio() -> None:
    assert cell_anchors((2, 4), (1.0, 4.0)).tolist() == [
        [-1, -1, 1, 1],
        [-2, -2, 2, 2],
        [-0, -2, 0, 2],  # half of 1 px is rounded to the even 0
        [-1, -4, 1, 4],
    ]


def test_grid_goes_by_row_then_column_then_cell_anchor() -> None:
    cell = torch.tensor([[-1.0, -1.0, 1.0, 1.0], [-2.0, -2.0, 2.0, 2.0]])
    assert grid_anchors(cell, (2, 2), (10, 20)).tolist() == [
        [-1, -1, 1, 1],
        [-2, -2, 2, 2],
        [19, -1, 21, 1],
        [18, -2, 22, 2],
        [-1, 9, 1, 11],
        [-2, 8, 2, 12],
        [19, 9, 21, 11],
        [18, 8, 22, 12],
    ]


def test_stride_is_the_padded_size_over_the_grid_rounded_down() -> None:
    # 800 rows are 25 at stride 32 and 13 on the coarsest level: 800 // 13 = 61.
    batch = ImageBatch(torch.zeros(2, 3, 800, 1344), [(800, 1333), (600, 800)])
    first, second = AnchorGenerator(((512,),), ((1.0,),))(batch, [torch.zeros(2, 1, 13, 21)])
    assert first.shape == (13 * 21, 4)
    assert (first[21] - first[0]).tolist() == [0, 61, 0, 61]
    assert (first[1] - first[0]).tolist() == [64, 0, 64, 0]
    assert torch.equal(first, second)  # by the padded size, so the same for every image


def test_flat_sizes_and_ratios_serve_every_level() -> None:
    flat = AnchorGenerator((32, 64), (0.5, 1.0))
    nested = AnchorGenerator(((32,), (64,)), ((0.5, 1.0), (0.5, 1.0)))
    assert flat.num_anchors_per_location() == [2, 2]
    for mine, other in zip(flat.cell_anchors, nested.cell_anchors, strict=True):
        assert torch.equal(mine, other)


def test_half_precision_maps_get_float32_anchors() -> None:
    batch = ImageBatch(torch.zeros(1, 3, 64, 64, dtype=torch.bfloat16), [(64, 64)])
    (anchors,) = AnchorGenerator(((32,),), ((1.0,),))(batch, [torch.zeros(1, 1, 4, 4, dtype=torch.bfloat16)])
    assert anchors.dtype is torch.float32


def test_wrong_numbers_of_levels_are_rejected() -> None:
    with pytest.raises(ValueError, match="sizes are given for 2 feature maps, aspect ratios for 1"):
        AnchorGenerator(((32,), (64,)), ((1.0,),))
    batch = ImageBatch(torch.zeros(1, 3, 64, 64), [(64, 64)])
    with pytest.raises(ValueError, match="sizes for 1 feature maps and was given 2"):
        AnchorGenerator(((32,),), ((1.0,),))(batch, [torch.zeros(1, 1, 4, 4)] * 2)
