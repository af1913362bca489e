"""The highest rate at which a goal is met."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from service.loadtest.fleet import Measured
from service.loadtest.plan import Goal
from service.loadtest.summary import measured_part, quantile

_CLOSE_ENOUGH = 1.05  # between the highest rate that met the goal and the lowest that did not
_MOST_STEPS = 24  # doubling a million times over, and halving the rest


@dataclass(frozen=True, slots=True)
class Step:
    """One rate that was tried.

    Args:
        value_s: what the goal's share of the requests was answered within; infinite if too many failed.
    """

    rate: float
    value_s: float
    met: bool
    measured: Measured


def highest_rate(
    measure: Callable[[float], Measured], goal: Goal, first_rate: float, *, on_step: Callable[[Step], None]
) -> list[Step]:
    """Double the rate until the goal is missed (or halve it until it is met), then close in on the border.

    Args:
        measure: carries out an open-loop run at a rate.
        first_rate: a guess.
        on_step: told of each step.

    Returns:
        The steps, in order; the answer is the highest rate of those that met the goal.
    """
    steps: list[Step] = []
    met, missed = 0.0, math.inf
    rate = first_rate
    while len(steps) < _MOST_STEPS and missed > _CLOSE_ENOUGH * met:
        measured = measure(rate)
        value_s = attained_s(measured, goal)
        step = Step(rate, value_s, value_s <= goal.limit_s, measured)
        steps.append(step)
        on_step(step)
        if step.met:
            met = max(met, rate)
        else:
            missed = min(missed, rate)
        if missed == math.inf:
            rate = met * 2
        elif met == 0:
            rate = missed / 2
            if rate * measured.plan.duration_s < 1:  # not one request: nothing meets this goal
                break
        else:
            rate = math.sqrt(met * missed)
    return steps


def best(steps: list[Step]) -> Step | None:
    return max((step for step in steps if step.met), key=lambda step: step.rate, default=None)


def attained_s(measured: Measured, goal: Goal) -> float:
    """What the goal's share of all requests was answered within. One that failed was never answered."""
    samples = measured_part(measured)
    if not len(samples):
        return math.inf
    return quantile(np.where(samples.succeeded, samples.latency, np.inf), goal.quantile)
