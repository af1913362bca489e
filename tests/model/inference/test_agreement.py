from __future__ import annotations

import pytest
import torch

from model.inference.agreement import agreement
from model.structures import Detection


def detection(*found: tuple[tuple[float, float, float, float], int, float]) -> Detection:
    boxes, labels, scores = zip(*found, strict=True) if found else ((), (), ())
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }


WANTED = detection(((0, 0, 10, 10), 1, 0.9), ((20, 20, 40, 40), 2, 0.7), ((50, 50, 60, 60), 1, 0.3))


@pytest.mark.parametrize(
    ("got", "share"),
    [
        (WANTED, 1.0),
        (detection(((20, 20, 40, 41), 2, 0.65), ((0, 0, 10, 10), 1, 0.85)), 1.0),  # in any order, about the same
        (detection(((0, 0, 10, 10), 2, 0.9), ((20, 20, 40, 40), 2, 0.7)), 0.5),  # of another class
        (detection(((0, 0, 10, 7), 1, 0.9), ((20, 20, 40, 40), 2, 0.7)), 0.5),  # elsewhere: 0.7 of the union
        (detection(((0, 0, 10, 10), 1, 0.9), ((20, 20, 40, 40), 2, 0.55)), 0.5),  # less sure
        (detection(), 0.0),
    ],
)
def test_the_share_found_again(got: Detection, share: float) -> None:
    assert agreement(WANTED, got) == share


def test_without_confident_detections_there_is_no_judging() -> None:
    assert agreement(detection(((0, 0, 10, 10), 1, 0.4)), WANTED) is None
    assert agreement(detection(), WANTED) is None
