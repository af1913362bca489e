"""Which detections are kept of those that the model gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou

from service.api.selection import Selection, suppress
from service.devices.detector import Detections

CAT, DOG, OX = 1, 2, 3


def detections(*found: tuple[Sequence[float], int, float]) -> Detections:
    return Detections(
        boxes=np.array([box for box, _, _ in found], np.float32).reshape(-1, 4),
        labels=np.array([label for _, label, _ in found], np.int64),
        scores=np.array([score for _, _, score in found], np.float32),
    )


# The boxes are 10 wide; each begins so many pixels to the right. Two that are 2 apart overlap by 8 / 12, 4 by 6 / 14.
FOUND = detections(
    ((0, 0, 10, 10), CAT, 0.9),
    ((2, 0, 12, 10), DOG, 0.8),
    ((4, 0, 14, 10), CAT, 0.7),
    ((50, 0, 60, 10), CAT, 0.3),
    ((50, 0, 60, 10), OX, 0.2),
)


@pytest.mark.parametrize(
    ("selection", "kept"),
    [
        (Selection(), [0, 1, 2, 3, 4]),
        (Selection(score_threshold=0.3), [0, 1, 2, 3]),
        (Selection(score_threshold=0.3, class_thresholds={CAT: 0.8, OX: 0.1}), [0, 1, 4]),
        (Selection(class_thresholds={CAT: 1.0}), [1, 4]),
        (Selection(labels=frozenset({DOG, OX})), [1, 4]),
        (Selection(labels=frozenset()), []),
        (Selection(max_detections=2), [0, 1]),
        (Selection(iou_threshold=0.5), [0, 1, 2, 3, 4]),
        (Selection(iou_threshold=0.4), [0, 1, 3, 4]),
        (Selection(iou_threshold=0.0), [0, 1, 3, 4]),
        (Selection(iou_threshold=0.5, class_agnostic=True), [0, 2, 3]),
        (Selection(iou_threshold=0.4, class_agnostic=True), [0, 3]),
        # What is not wanted drops nothing.
        (Selection(iou_threshold=0.5, class_agnostic=True, labels=frozenset({DOG, OX})), [1, 4]),
        (Selection(iou_threshold=0.4, class_agnostic=True, class_thresholds={CAT: 0.95}), [1, 4]),
        (Selection(iou_threshold=0.4, class_agnostic=True, max_detections=2), [0, 3]),
    ],
)
def test_what_is_kept(selection: Selection, kept: list[int]) -> None:
    found = selection.apply(FOUND)
    assert found.boxes.tolist() == FOUND.boxes[kept].tolist()
    assert found.labels.tolist() == FOUND.labels[kept].tolist()
    assert found.scores.tolist() == FOUND.scores[kept].tolist()


def test_a_score_equal_to_a_threshold_is_kept() -> None:
    for threshold in (0.3, 0.7, 0.9):  # none of them is a float32
        assert Selection(score_threshold=threshold).apply(FOUND).scores[-1] == np.float32(threshold)


def test_nothing_stays_nothing() -> None:
    nothing = detections()
    for selection in (
        Selection(score_threshold=0.5, class_thresholds={CAT: 0.8}),
        Selection(iou_threshold=0.3),
        Selection(iou_threshold=0.3, class_agnostic=True),
    ):
        assert len(selection.apply(nothing).scores) == 0


CORNER = st.integers(0, 40)
SIDE = st.integers(1, 40)
BOX = st.builds(lambda x, y, w, h: (x, y, x + w, y + h), CORNER, CORNER, SIDE, SIDE)
ONE = st.tuples(BOX, st.sampled_from([CAT, DOG]), st.sampled_from([0.1, 0.5, 0.9]))


@given(st.lists(ONE, max_size=12), st.sampled_from([0.0, 0.2, 0.5]), st.booleans())
def test_what_is_left_does_not_overlap_and_what_is_gone_does(
    found: list[tuple[Sequence[float], int, float]], iou_threshold: float, class_agnostic: bool
) -> None:
    everything = detections(*sorted(found, key=lambda one: -one[2]))
    kept = suppress(everything, iou_threshold=iou_threshold, class_agnostic=class_agnostic)
    overlaps = box_iou(*(torch.from_numpy(one.boxes.astype(np.float64)) for one in (kept, everything))).numpy()
    compared = (kept.labels[:, None] == everything.labels) | class_agnostic
    as_good = kept.scores[:, None] >= everything.scores
    too_near = compared & as_good & (overlaps > iou_threshold)
    assert too_near.any(axis=0).all()  # each is kept, or overlaps one that is
    again = suppress(kept, iou_threshold=iou_threshold, class_agnostic=class_agnostic)
    assert again.boxes.tolist() == kept.boxes.tolist()
