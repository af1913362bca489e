"""The learning rate over a run, as a factor of its peak."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "onecycle", "step")
# Of the run; the steps of Detectron's "1x" schedule: epochs 8 and 11 of 12.
_STEPS = (8 / 12, 11 / 12)
_STEP_FACTOR = 0.1
_ONECYCLE_START = 1 / 25
_ONECYCLE_RISE = 0.25


def rate_factor(name: str, iteration: int, iterations: int, warmup: int) -> float:
    """The factor for iteration 0, 1, ..., iterations - 1.

    Args:
        name: "step" divides by ten twice; "cosine" falls to zero along half a cosine; "onecycle" first rises along
            one for a quarter of the run.
        warmup: iterations over which the rate rises linearly; "onecycle" rises by itself and does not need them.

    Raises:
        ValueError: an unknown name.
    """
    share = iteration / max(1, iterations)
    if name == "step":
        factor = _STEP_FACTOR ** sum(share >= step for step in _STEPS)
    elif name == "cosine":
        factor = _half_cosine(1.0, 0.0, share)
    elif name == "onecycle":
        rising = share < _ONECYCLE_RISE
        factor = (
            _half_cosine(_ONECYCLE_START, 1.0, share / _ONECYCLE_RISE)
            if rising
            else _half_cosine(1.0, 0.0, (share - _ONECYCLE_RISE) / (1 - _ONECYCLE_RISE))
        )
    else:
        raise ValueError(f"the schedule must be one of {', '.join(SCHEDULES)}, not {name!r}")
    return factor * min(1.0, (iteration + 1) / (warmup + 1))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
