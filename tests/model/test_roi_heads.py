"""From class logits and deltas to detections, on numbers made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from model.roi_heads import FastRCNNPredictor, RoIHeads, TwoMLPHead
from model.structures import SizeHW

LEFT = [0.0, 0.0, 20.0, 20.0]
ALMOST_LEFT = [1.0, 0.0, 21.0, 20.0]
RIGHT = [60.0, 0.0, 80.0, 20.0]


def detect(
    proposals: Any, probabilities: Any, deltas: Any = None, image_hw: SizeHW = (50, 100), **settings: Any
) -> list[tuple[int, float, list[float]]]:
    """`(label, score, box)` of each detection, from proposals and the probabilities of their classes."""
    heads = RoIHeads(nn.Identity(), nn.Identity(), nn.Identity(), **settings)
    logits = torch.tensor(probabilities).log()
    if deltas is None:
        deltas = torch.zeros(*logits.shape, 4)
    (found,) = heads.postprocess(logits, deltas, [torch.tensor(proposals)], [image_hw])
    rows = zip(found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True)
    return [(label, round(score, 4), box) for label, score, box in rows]


def test_one_proposal_can_be_several_classes_but_never_the_background() -> None:
    assert detect([LEFT], [[0.6, 0.3, 0.1]]) == [(1, 0.3, LEFT), (2, 0.1, LEFT)]


def test_best_first_over_the_threshold_only() -> None:
    rows = [[0.5, 0.5, 0.0], [0.2, 0.04, 0.76]]
    assert detect([LEFT, RIGHT], rows) == [(2, 0.76, RIGHT), (1, 0.5, LEFT)]
    assert detect([LEFT, RIGHT], rows, score_thresh=0.6) == [(2, 0.76, RIGHT)]
    assert detect([LEFT], [[0.5, 0.5, 0.0]], score_thresh=0.5) == []  # the threshold itself is not enough


def test_doubles_of_a_class_are_dropped_and_those_of_another_kept() -> None:
    same = [[0.2, 0.8, 0.0], [0.3, 0.7, 0.0]]
    assert detect([LEFT, ALMOST_LEFT], same) == [(1, 0.8, LEFT)]
    assert detect([LEFT, ALMOST_LEFT], same, nms_thresh=0.99) == [(1, 0.8, LEFT), (1, 0.7, ALMOST_LEFT)]
    other = [[0.2, 0.8, 0.0], [0.3, 0.0, 0.7]]
    assert detect([LEFT, ALMOST_LEFT], other) == [(1, 0.8, LEFT), (2, 0.7, ALMOST_LEFT)]


def test_what_suppression_keeps_moves_to_what_overlaps_it_on_request() -> None:
    rows = [[0.4, 0.6, 0.0], [0.8, 0.2, 0.0], [0.96, 0.04, 0.0]]
    proposals = [LEFT, ALMOST_LEFT, ALMOST_LEFT]  # the last one is no candidate
    assert detect(proposals, rows) == [(1, 0.6, LEFT)]
    [(label, score, box)] = detect(proposals, rows, vote_thresh=0.8)
    assert (label, score) == (1, 0.6)
    assert box == pytest.approx([0.25, 0, 20.25, 20])
    assert detect(proposals, rows, vote_thresh=0.95) == [(1, 0.6, LEFT)]
    assert detect([[200.0, 0.0, 220.0, 20.0]], [[0.1, 0.9]], vote_thresh=0.8) == []


@pytest.mark.parametrize("thresh", [0.0, 1.1, float("nan")])
def test_a_vote_beyond_all_overlaps_is_rejected(thresh: float) -> None:
    with pytest.raises(ValueError, match="box_vote_thresh must be over 0 and at most 1"):
        RoIHeads(nn.Identity(), nn.Identity(), nn.Identity(), vote_thresh=thresh)


def test_no_more_than_asked_for() -> None:
    assert detect([LEFT, RIGHT], [[0.5, 0.5], [0.4, 0.6]], detections_per_img=1) == [(1, 0.6, RIGHT)]


def test_each_class_moves_the_proposal_by_its_own_deltas_and_the_box_is_clipped() -> None:
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 1, 0] = 5.0  # weighed by 10: half the width to the right
    deltas[0, 2, 1] = -5.0  # half the height upwards, out of the image
    deltas[0, 0] = 99.0
    found = detect([LEFT], [[0.5, 0.3, 0.2]], deltas)
    assert found == [(1, 0.3, [10, 0, 30, 20]), (2, 0.2, [0, 0, 20, 10])]


def test_nothing_outside_the_image_and_nothing_from_nothing() -> None:
    assert detect([[200.0, 0.0, 220.0, 20.0]], [[0.1, 0.9]]) == []
    heads = RoIHeads(nn.Identity(), nn.Identity(), nn.Identity())
    (found,) = heads.postprocess(torch.zeros(0, 3), torch.zeros(0, 3, 4), [torch.zeros(0, 4)], [(50, 100)])
    assert {"boxes": found["boxes"].shape, "labels": found["labels"].shape, "scores": found["scores"].shape} == {
        "boxes": (0, 4),
        "labels": (0,),
        "scores": (0,),
    }


def test_head_and_predictor_shapes() -> None:
    hidden = TwoMLPHead(2 * 9, 5)(torch.ones(4, 2, 3, 3))
    assert hidden.shape == (4, 5)
    assert hidden.min() >= 0
    for x in (hidden, hidden[:, :, None, None]):
        logits, deltas = FastRCNNPredictor(5, 3)(x)
        assert (logits.shape, deltas.shape) == ((4, 3), (4, 12))
