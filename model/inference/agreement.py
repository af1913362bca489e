"""Whether two forms of a detector find the same."""

from __future__ import annotations

from model.boxes import box_iou
from model.structures import Detection

_CONFIDENT = 0.5
_LEAST_OVERLAP = 0.8
_SCORE_DIFFERENCE = 0.1


def agreement(wanted: Detection, got: Detection) -> float | None:
    """Share of what one form finds with confidence that the other finds too: class, place and about the score.

    Returns:
        0..1; None if there is nothing to judge by.
    """
    sure = wanted["scores"] > _CONFIDENT
    if not sure.any():
        return None
    is_same = box_iou(wanted["boxes"][sure], got["boxes"]) >= _LEAST_OVERLAP
    is_same &= wanted["labels"][sure][:, None] == got["labels"]
    is_same &= (wanted["scores"][sure][:, None] - got["scores"]).abs() <= _SCORE_DIFFERENCE
    return float(is_same.any(dim=1).float().mean())
