"""The highest rate at which a goal is met."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from service.loadtest.fleet import Measured
from service.loadtest.plan import Goal
from service.loadtest.summary import answered_in_time, measured_part, quantile

_CLOSE_ENOUGH = 1.05  # between the highest rate that met the goal and the lowest that did not
_SHARE_BEHIND = 0.05  # of the arrivals
_MOST_RATES = 24  # doubling a million times over, and halving the rest


@dataclass(frozen=True, slots=True)
class Step:
    """A rate that was tried.

    Args:
        value_s: what the goal's share of the requests was answered within; infinite if too many failed.
        kept_up: whether answers came as fast as arrivals. Where they do not, the queue grows, and a longer test misses.
        met: value_s is within the goal, and answers kept up.
    """

    rate: float
    value_s: float
    kept_up: bool
    met: bool
    measured: Measured


def highest_rate(
    measure: Callable[[float], Measured], goal: Goal, first_rate: float, *, on_step: Callable[[Step], None]
) -> list[Step]:
    """Double the rate until the goal is missed (or halve it until it is met), then close in on the border.

    A rate that misses is tried once more: something else may have kept the machine busy.

    Args:
        measure: carries out an open-loop run at a rate.
        first_rate: a guess.
        on_step: called with each step.

    Returns:
        The steps, in order; the answer is the highest rate of those that met the goal.
    """
    steps: list[Step] = []
    met, missed = 0.0, math.inf
    rate = first_rate

    def is_met(rate: float) -> bool:
        measured = measure(rate)
        value_s, keeps = attained_s(measured, goal), kept_up(measured)
        steps.append(Step(rate, value_s, keeps, keeps and value_s <= goal.limit_s, measured))
        on_step(steps[-1])
        return steps[-1].met

    for _ in range(_MOST_RATES):
        if missed <= _CLOSE_ENOUGH * met:
            break
        if is_met(rate) or is_met(rate):
            met = max(met, rate)
        else:
            missed = min(missed, rate)
        if missed == math.inf:
            rate = met * 2
        elif met == 0:
            rate = missed / 2
            if rate * steps[-1].measured.plan.duration_s < 1:  # not one request: nothing meets this goal
                break
        else:
            rate = math.sqrt(met * missed)
    return steps


def best(steps: list[Step]) -> Step | None:
    return max((step for step in steps if step.met), key=lambda step: step.rate, default=None)


def lowest_missed(steps: list[Step]) -> Step | None:
    """What lies above the best, as the first of its two tries was."""
    found = best(steps)
    above = [step for step in steps if not step.met and (found is None or step.rate > found.rate)]
    return min(above, key=lambda step: step.rate, default=None)


def attained_s(measured: Measured, goal: Goal) -> float:
    """What the goal's share of all requests was answered within. One that failed was never answered."""
    samples = measured_part(measured)
    if not len(samples):
        return math.inf
    return quantile(np.where(samples.succeeded, samples.latency, np.inf), goal.quantile)


def kept_up(measured: Measured) -> bool:
    """Whether as many requests were answered in the measured time as were to be sent in it, within 5 % and chance.

    What chance does to the number in flight is less than what it does to the number of arrivals, whose deviation is
    its root. Twice that would hide, in a few seconds, a queue that grows by a fifth of what arrives.
    """
    arrived = len(measured_part(measured))
    missing = arrived - answered_in_time(measured)
    return missing <= max(_SHARE_BEHIND * arrived, math.sqrt(arrived))
