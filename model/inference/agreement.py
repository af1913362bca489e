"""Whether two forms of a detector find the same, and whether one form still finds what it found."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

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


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far apart two answers of one form to one picture may be by rounding.

    Attributes:
        box_px: a coordinate of a box.
        score: a score.
        raw: a raw score, as a share of the largest.
    """

    box_px: float
    score: float
    raw: float


# The bounds to which an image's answer stays the same in any company, see docs/architecture.md.
_SHORT = Tolerance(box_px=0.5, score=0.02, raw=0.05)
_TOLERANCES = {"fp32": Tolerance(box_px=0.05, score=1e-4, raw=1e-3)}
# A detection this weak may fall below the detector's own threshold, or behind the last that it keeps.
_WEAKEST = 0.05
_MOST = 100


def disagreement(kept: Detection, now: Detection, precision: str) -> str | None:
    """What differs between two answers of the same form to the same picture, in words; None if nothing does.

    Each detection of one must be in the other: the same class, and box and score within the tolerance of the precision.
    """
    allowed = _TOLERANCES.get(precision, _SHORT)
    lost, made_up = _unmatched(kept, now, allowed), _unmatched(now, kept, allowed)
    if lost == made_up == 0:
        return None
    return (
        f"{lost} of {len(kept['scores'])} detections are missing or have changed, "
        f"{made_up} of {len(now['scores'])} are new or have changed"
    )


def raw_disagreement(kept: Tensor, now: Tensor, precision: str) -> str | None:
    """The same for raw scores, which even a detector has that finds nothing."""
    allowed = _TOLERANCES.get(precision, _SHORT)
    if kept.shape == now.shape and bool(((now - kept).abs() <= allowed.raw * kept.abs().max()).all()):
        return None  # NaN is not within it
    return "the scores before any threshold have changed"


def _unmatched(wanted: Detection, got: Detection, allowed: Tolerance) -> int:
    """How many detections of `wanted` are not in `got`."""
    scores = wanted["scores"]
    floor = float(scores.min()) if len(scores) >= _MOST else _WEAKEST
    near = (wanted["boxes"][:, None] - got["boxes"]).abs().amax(dim=-1) <= allowed.box_px
    near &= (scores[:, None] - got["scores"]).abs() <= allowed.score
    near &= wanted["labels"][:, None] == got["labels"]
    return int((~near.any(dim=1) & ~(scores <= floor + allowed.score)).sum())
