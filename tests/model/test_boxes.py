from __future__ import annotations

import pytest
import torch
import torchvision.ops
from hypothesis import given
from hypothesis import strategies as st

from model.boxes import at_least_float32, box_area, box_iou, clip_boxes, scale_boxes, sides_at_least, vote_boxes


def test_area_of_any_shape_of_boxes() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 2.0, 3.0], [1.0, 1.0, 1.0, 5.0]]])
    assert box_area(boxes).tolist() == [[6.0, 0.0]]


@pytest.mark.parametrize(
    ("other", "iou"),
    [
        ((0, 0, 10, 10), 1.0),
        ((5, 0, 15, 10), 50 / 150),
        ((0, 0, 5, 5), 25 / 100),
        ((10, 0, 20, 10), 0.0),  # touching is not overlapping
        ((12, 12, 20, 20), 0.0),
        ((-5, -5, 15, 15), 100 / 400),
    ],
)
def test_iou_by_hand(other: tuple[int, int, int, int], iou: float) -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert box_iou(box, torch.tensor([other], dtype=torch.float32)).item() == pytest.approx(iou)


def test_iou_is_of_every_pair_and_equals_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    corners, sides = (torch.rand(2, 40, 2, generator=generator) * 50).unbind(0)
    boxes = torch.cat((corners, corners + sides), dim=1)
    assert box_iou(boxes[:7], boxes).shape == (7, 40)
    assert torch.equal(box_iou(boxes[:7], boxes), torchvision.ops.box_iou(boxes[:7], boxes))
    assert box_iou(boxes[:0], boxes).shape == (0, 40)


def test_iou_of_half_precision_is_computed_in_float32() -> None:
    boxes = torch.tensor([[0.0, 0.0, 1000.0, 1000.0]], dtype=torch.float16)  # its area is no float16
    assert box_iou(boxes, boxes).item() == 1.0


@pytest.mark.parametrize(
    ("given_type", "lifted"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_at_least_float32(given_type: torch.dtype, lifted: torch.dtype) -> None:
    assert at_least_float32(torch.ones(1, dtype=given_type)).dtype is lifted


def test_clip_moves_corners_onto_the_border() -> None:
    boxes = torch.tensor([[-3.0, 4.0, 12.0, 30.0], [2.0, 3.0, 4.0, 5.0], [50.0, 60.0, 70.0, 80.0]])
    assert clip_boxes(boxes, (20, 10)).tolist() == [[0, 4, 10, 20], [2, 3, 4, 5], [10, 20, 10, 20]]
    assert clip_boxes(boxes[None], (20, 10)).shape == (1, 3, 4)


def test_sides_at_least_needs_both_sides_and_includes_the_limit() -> None:
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.9, 9.0], [0.0, 0.0, 9.0, 1.9], [5.0, 5.0, 4.0, 4.0]])
    assert sides_at_least(boxes, 2.0).tolist() == [True, False, False, False]


def test_scale_carries_x_by_the_widths_and_y_by_the_heights() -> None:
    boxes = torch.tensor([[10.0, 10.0, 20.0, 30.0]])
    assert scale_boxes(boxes, (100, 200), (50, 600)).tolist() == [[30.0, 5.0, 60.0, 15.0]]


@given(
    from_hw=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    to_hw=st.tuples(st.integers(1, 1333), st.integers(1, 1333)),
)
def test_scale_equals_torchvisions(from_hw: tuple[int, int], to_hw: tuple[int, int]) -> None:
    from torchvision.models.detection.transform import resize_boxes

    boxes = torch.tensor([[0.0, 0.5, 17.3, 99.9], [3.25, 1.0, 640.0, 480.0]])
    assert torch.equal(scale_boxes(boxes, from_hw, to_hw), resize_boxes(boxes, from_hw, to_hw))


def test_votes_by_hand() -> None:
    """Of 10 x 10 px: 1 px aside overlaps by 90 / 110, 2 px by 80 / 120."""
    boxes = torch.tensor([[float(x), 0.0, x + 10.0, 10.0] for x in (0, 1, 2, 50, 1)])
    labels, scores = torch.tensor([1, 1, 1, 1, 2]), torch.tensor([0.6, 0.2, 0.2, 0.9, 0.9])
    kept, kept_labels = boxes[[0, 3]], labels[[0, 3]]

    def aside(min_iou: float) -> list[float]:
        lefts: list[float] = vote_boxes(kept, kept_labels, boxes, labels, scores, min_iou)[:, 0].tolist()
        return lefts

    assert aside(0.9) == [0, 50]
    assert aside(0.8) == pytest.approx([0.25, 50])  # 0.2 of 0.8 says 1
    assert aside(0.6) == pytest.approx([0.6, 50])  # 0.2 of 1.0 says 1, and 0.2 says 2
    moved = vote_boxes(kept, kept_labels, boxes, labels, scores, 0.6)
    torch.testing.assert_close(moved, torch.tensor([[0.6, 0, 10.6, 10], [50, 0, 60, 10]]))


def test_votes_of_many_images_at_once_and_of_none() -> None:
    generator = torch.Generator().manual_seed(0)
    corners, sides = (torch.rand(2, 3, 40, 2, generator=generator) * 20).unbind(0)
    boxes, labels = torch.cat((corners, corners + sides + 1), dim=-1), torch.arange(40).expand(3, 40) % 2
    scores = torch.rand(3, 40, generator=generator) - 0.2  # some have none
    together = vote_boxes(boxes[:, :9], labels[:, :9], boxes, labels, scores, 0.3)
    assert not together.equal(boxes[:, :9])
    for image, voted in enumerate(together):
        has = scores[image] > 0
        alone = vote_boxes(
            boxes[image, :9], labels[image, :9], boxes[image, has], labels[image, has], scores[image, has], 0.3
        )
        torch.testing.assert_close(voted, alone)
    unheard = vote_boxes(boxes[:, :9], labels[:, :9], boxes, labels, torch.full((3, 40), -1.0), 0.3)
    assert unheard.equal(boxes[:, :9])
    assert vote_boxes(boxes[0, :0], labels[0, :0], boxes[0, :0], labels[0, :0], scores[0, :0], 0.3).shape == (0, 4)


def test_what_has_no_vote_may_be_no_number() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [torch.nan] * 4])
    labels, scores = torch.tensor([1, 1]), torch.tensor([0.9, -1.0])
    assert vote_boxes(boxes[:1], labels[:1], boxes, labels, scores, 0.5).equal(boxes[:1])
