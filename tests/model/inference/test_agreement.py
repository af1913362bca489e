from __future__ import annotations

import pytest
import torch

from model.inference.agreement import agreement, disagreement, raw_disagreement
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


def row(*detections: tuple[float, int, float]) -> Detection:
    """By left edge, label and score; ten pixels wide."""
    boxes = [[x, 0, x + 10, 10] for x, _, _ in detections]
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor([label for _, label, _ in detections], dtype=torch.int64),
        "scores": torch.tensor([score for *_, score in detections], dtype=torch.float32),
    }


KEPT = row((0, 1, 0.9), (30, 2, 0.6), (60, 1, 0.0505))


@pytest.mark.parametrize(
    ("now", "precision", "same"),
    [
        (KEPT, "fp32", True),
        (row((30, 2, 0.6), (0, 1, 0.9), (60, 1, 0.0505)), "fp32", True),  # in another order
        (row((0.04, 1, 0.90005), (30, 2, 0.6), (60, 1, 0.0505)), "fp32", True),
        (row((0.1, 1, 0.9), (30, 2, 0.6), (60, 1, 0.0505)), "fp32", False),
        (row((0.1, 1, 0.9), (30, 2, 0.6)), "bf16", True),  # what is near the threshold may fall below it
        (row((0, 1, 0.9), (30, 2, 0.6)), "fp32", False),
        (row((0, 2, 0.9), (30, 2, 0.6), (60, 1, 0.0505)), "bf16", False),
        (row((0, 1, 0.9)), "int8", False),
        (row(), "bf16", False),
        (row((0, 1, 0.9), (30, 2, 0.6), (60, 1, 0.0505), (90, 1, 0.3)), "bf16", False),
        (row((0, 1, float("nan")), (30, 2, 0.6), (60, 1, 0.0505)), "bf16", False),
    ],
)
def test_what_counts_as_the_same_answer(now: Detection, precision: str, same: bool) -> None:
    assert (disagreement(KEPT, now, precision) is None) == same


def test_of_a_hundred_detections_the_weakest_may_change_places() -> None:
    many = row(*((20 * n, 1, 0.9 - 0.001 * n) for n in range(100)))
    other = row(*((20 * n, 1, 0.9 - 0.001 * n) for n in range(99)), (5000, 1, 0.80095))
    assert disagreement(many, other, "fp32") is None
    assert disagreement(many, row((0, 1, 0.9)), "fp32") is not None


@pytest.mark.parametrize(
    ("now", "same"),
    [([4.0, -2.0], True), ([4.003, -2.003], True), ([4.0, -1.9], False), ([4.0], False), ([4.0, float("nan")], False)],
)
def test_what_counts_as_the_same_raw_scores(now: list[float], same: bool) -> None:
    assert (raw_disagreement(torch.tensor([4.0, -2.0]), torch.tensor(now), "fp32") is None) == same
