"""The choice of proposals, on predictions made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from model.rpn import Predictions, RegionProposalNetwork, RPNHead
from model.structures import SizeHW

FAR = [100.0, 100.0, 120.0, 120.0]
NEAR = [10.0, 10.0, 30.0, 30.0]
NEARLY_NEAR = [11.0, 10.0, 31.0, 30.0]  # overlaps NEAR by 0.905
OVER_THE_EDGE = [180.0, 80.0, 230.0, 120.0]
OUTSIDE = [300.0, 300.0, 320.0, 320.0]


def propose(levels: Any, *, train: bool = False, image_hw: SizeHW = (150, 200), **settings: Any) -> list[list[float]]:
    """Proposals from `(anchor, logit)` pairs per level, none of them moved."""
    network = RegionProposalNetwork(nn.Identity(), nn.Identity(), **settings).train(train)
    logits = [torch.tensor([[logit for _, logit in level]]) for level in levels]
    deltas = [torch.zeros(1, len(level), 4) for level in levels]
    anchors = torch.tensor([anchor for level in levels for anchor, _ in level])
    (proposals,) = network.propose(Predictions(logits, deltas, anchors), [image_hw])
    return proposals.tolist()


def test_best_first_and_near_doubles_dropped() -> None:
    assert propose([[(FAR, 0.5), (NEARLY_NEAR, 1.0), (NEAR, 2.0)]]) == [NEAR, FAR]
    assert propose([[(FAR, 0.5), (NEARLY_NEAR, 1.0), (NEAR, 2.0)]], nms_thresh=0.95) == [NEAR, NEARLY_NEAR, FAR]


def test_doubles_on_different_levels_are_both_kept() -> None:
    assert propose([[(NEAR, 2.0)], [(NEARLY_NEAR, 1.0)]]) == [NEAR, NEARLY_NEAR]


def test_clipped_to_the_image_and_dropped_when_nothing_is_left() -> None:
    assert propose([[(OUTSIDE, 3.0), (OVER_THE_EDGE, 1.0)]]) == [[180, 80, 200, 120]]


def test_low_objectness_is_dropped() -> None:
    assert propose([[(NEAR, 0.1), (FAR, -0.1)]], score_thresh=0.5) == [NEAR]
    assert propose([[(NEAR, 0.0)]], score_thresh=0.5) == [NEAR]  # the threshold itself is enough


@pytest.mark.parametrize(("train", "kept"), [(True, [NEAR, FAR]), (False, [NEAR])])
def test_limits_of_training_and_detection(train: bool, kept: list[list[float]]) -> None:
    levels = [[(NEAR, 2.0), (OVER_THE_EDGE, 1.0)], [(FAR, 1.5)]]
    limits = {"pre_nms_top_n": (1, 2), "post_nms_top_n": (2, 1)}  # per level before, in all after
    assert propose(levels, train=train, **limits) == kept


def test_head_is_shared_and_gives_one_logit_and_four_deltas_per_anchor() -> None:
    head = RPNHead(8, 3, conv_depth=2)
    logits, deltas = head([torch.zeros(2, 8, 4, 5), torch.zeros(2, 8, 2, 3)])
    assert [tuple(level.shape) for level in logits] == [(2, 3, 4, 5), (2, 3, 2, 3)]
    assert [tuple(level.shape) for level in deltas] == [(2, 12, 4, 5), (2, 12, 2, 3)]
    assert "conv.1.0.weight" in head.state_dict()
