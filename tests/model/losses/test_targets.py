from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from model.box_coder import BoxCoder
from model.losses.matcher import Matcher
from model.losses.sampler import BalancedPositiveNegativeSampler
from model.losses.targets import DegenerateBoxError, RoISamples, anchor_targets, check_targets, select_training_samples
from model.structures import Target
from tests.support.oracle import blobs, make_pair

CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))


def target(boxes: Sequence[Sequence[float]], labels: Sequence[int]) -> Target:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


GOOD = target([[0, 0, 10, 10]], [3])


def test_good_targets_pass() -> None:
    empty = target([], [])
    assert check_targets([GOOD, empty | {"image_id": torch.tensor(7)}], 2)[0] is GOOD


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (None, ValueError, "training needs targets"),
        ([GOOD], ValueError, "2 images came with 1 targets"),
        ([GOOD, {"boxes": GOOD["boxes"]}], ValueError, "the target of image 1 lacks labels"),
        ([GOOD, {}], ValueError, "lacks boxes, labels"),
        ([GOOD, {"boxes": [[0, 0, 1, 1]], "labels": [1]}], TypeError, "of image 1 must be tensors"),
        ([GOOD, GOOD | {"boxes": torch.zeros(4)}], ValueError, r"shape \[G, 4\], not \[4\]"),
        ([GOOD, GOOD | {"boxes": torch.zeros(1, 5)}], ValueError, r"shape \[G, 4\], not \[1, 5\]"),
        ([GOOD, GOOD | {"labels": torch.ones(2, dtype=torch.int64)}], ValueError, "1 boxes, but labels of shape"),
        ([GOOD, GOOD | {"boxes": GOOD["boxes"].long()}], TypeError, "must be floating point, not torch.int64"),
        ([GOOD, GOOD | {"labels": torch.ones(1)}], TypeError, "must be int64, not torch.float32"),
    ],
)
def test_wrong_targets_are_told(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_targets(given, 2)


@pytest.mark.parametrize(
    "box", [(5, 5, 5, 9), (5, 5, 9, 5), (9, 5, 5, 9), (math.nan, 0, 1, 1), (0, 0, math.inf, 1), (5, 5, 5, 5)]
)
def test_a_degenerate_box_is_named_with_its_image(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(DegenerateBoxError, match="box 2 of image 1 is "):
        check_targets([GOOD, target([[0, 0, 1, 1], [1, 1, 2, 2], box], [1, 1, 1])], 2)


def test_a_degenerate_box_stops_the_model_in_training() -> None:
    _, ours = make_pair(min_size=96, max_size=96)
    ours.train()
    with pytest.raises(DegenerateBoxError, match=r"box 0 of image 0 is \[4\.0, 4\.0, 4\.0, 8\.0\]"):
        ours([blobs(32, 32)], [target([[4, 4, 4, 8]], [1])])
    with pytest.raises(ValueError, match="training needs targets"):
        ours([blobs(32, 32)])


ANCHORS = torch.tensor(
    [
        [0.0, 0.0, 10.0, 10.0],  # the box itself
        [0.0, 0.0, 10.0, 20.0],  # IoU 0.5: between the thresholds
        [30.0, 30.0, 40.0, 40.0],  # far away
    ]
)


def test_anchor_targets_by_hand() -> None:
    labels, deltas = anchor_targets(ANCHORS, GOOD, Matcher(0.7, 0.3, allow_low_quality_matches=True), CODER)
    assert labels.tolist() == [1, -1, 0]
    assert deltas[0].tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(deltas[1], torch.tensor([0, -0.25, 0, math.log(0.5)]))


def test_without_boxes_every_anchor_is_background() -> None:
    labels, deltas = anchor_targets(ANCHORS, target([], []), Matcher(0.7, 0.3), CODER)
    assert labels.tolist() == [0, 0, 0]
    assert deltas.shape == (3, 4)


def select(proposals: list[Tensor], targets: list[Target], batch_size: int = 10, fraction: float = 0.5) -> RoISamples:
    return select_training_samples(
        proposals,
        targets,
        matcher=Matcher(0.5, 0.4),
        sampler=BalancedPositiveNegativeSampler(batch_size, fraction),
        coder=CODER,
    )


def test_training_samples_by_hand() -> None:
    samples = select([ANCHORS, ANCHORS[2:]], [target([[0, 0, 10, 10], [50, 50, 60, 60]], [3, 5]), target([], [])])
    # The boxes join the proposals, at their end; so there is a positive for box 1 too.
    assert samples.proposals[0].tolist() == [*ANCHORS.tolist(), [0, 0, 10, 10], [50, 50, 60, 60]]
    assert samples.proposals[1].tolist() == ANCHORS[2:].tolist()
    assert samples.labels.tolist() == [3, 3, 0, 3, 5, 0]
    torch.testing.assert_close(samples.deltas[1], torch.tensor([0, -0.25, 0, math.log(0.5)]))
    assert samples.deltas[[0, 3, 4]].abs().max() == 0


def test_ignored_proposals_are_not_sampled() -> None:
    near = torch.tensor([[0.0, 0.0, 10.0, 22.0]])  # IoU 0.45, between 0.4 and 0.5
    assert select([near], [GOOD]).proposals[0].tolist() == [[0, 0, 10, 10]]


def test_the_batch_size_bounds_the_samples_of_each_image() -> None:
    many = torch.rand(100, 4, generator=torch.Generator().manual_seed(0)).cumsum(dim=1) * 30
    samples = select([many, many], [GOOD, GOOD], batch_size=16, fraction=0.25)
    assert [len(proposals) for proposals in samples.proposals] == [16, 16]
    assert samples.labels.shape == (32,)
    assert samples.deltas.shape == (32, 4)
    assert (samples.labels[:16] > 0).sum() <= 4
