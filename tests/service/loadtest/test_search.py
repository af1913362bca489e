from __future__ import annotations

import math
from dataclasses import replace

import pytest

from service.loadtest.fleet import Measured
from service.loadtest.plan import Goal
from service.loadtest.search import Step, attained_s, best, highest_rate, kept_up, lowest_missed
from tests.support.measurements import PLAN, measured


def test_a_rate_that_answers_do_not_keep_up_with_is_not_met() -> None:
    """25 arrivals a second for 10 s, of which 18 a second are answered: the goal's half is in time all the same."""
    rows = [(2 + i / 25, 0.05 + max(0.0, i / 18 - i / 25), "") for i in range(250)]
    behind = measured(rows)
    goal = Goal(0.5, 2)
    assert attained_s(behind, goal) < goal.limit_s
    assert not kept_up(behind)
    steps = highest_rate(
        lambda rate: behind if rate > 20 else measured([(2 + i / 18, 0.05, "") for i in range(180)]),
        goal,
        25.4,
        on_step=lambda step: None,
    )
    assert [(step.met, step.kept_up) for step in steps[:3]] == [(False, False), (False, False), (True, True)]
    found = best(steps)
    assert found is not None
    assert found.rate <= 20


@pytest.mark.parametrize("capacity", [0.9, 7.3, 100, 4000])
@pytest.mark.parametrize("first", [1.0, 30.0])
def test_the_search_closes_in_on_the_highest_rate(capacity: float, first: float) -> None:
    def measure(rate: float) -> Measured:
        return measured([(3.0, 0.1 if rate <= capacity else 0.3, "")])

    told: list[Step] = []
    steps = highest_rate(measure, Goal(0.99, 0.2), first, on_step=told.append)
    found = best(steps)
    assert found is not None
    assert capacity / 1.06 < found.rate <= capacity
    assert told == steps
    assert len({step.rate for step in steps}) < 24


def test_a_rate_that_misses_is_tried_once_more() -> None:
    tried: list[float] = []

    def measure(rate: float) -> Measured:
        tried.append(rate)
        noise = rate == 20 and tried.count(rate) == 1
        return measured([(3.0, 0.3 if rate > 25 or noise else 0.1, "")])

    steps = highest_rate(measure, Goal(0.99, 0.2), 10.0, on_step=lambda step: None)
    assert tried[:5] == [10, 20, 20, 40, 40]
    assert [step.met for step in steps[:5]] == [True, False, True, False, False]
    found = best(steps)
    assert found is not None
    assert 25 / 1.06 < found.rate <= 25
    missed = lowest_missed(steps)
    assert missed is not None
    assert 25 < missed.rate <= found.rate * 1.05


def test_the_search_ends_where_nothing_meets_the_goal_and_where_everything_does() -> None:
    never = highest_rate(lambda rate: measured([(3.0, 9.0, "")]), Goal(0.9, 0.2), 8.0, on_step=lambda step: None)
    assert best(never) is None
    assert min(step.rate for step in never) >= 0.1  # below it, no request in ten seconds
    always = highest_rate(lambda rate: measured([(3.0, 0.1, "")]), Goal(0.9, 0.2), 8.0, on_step=lambda step: None)
    assert len(always) == 24


def test_a_failure_is_never_within_the_goal() -> None:
    rows = [(2 + i / 100, 0.01, "") for i in range(98)] + [(3.0, 0.001, "503"), (3.0, 0.001, "503")]
    assert attained_s(measured(rows), Goal(0.98, 1)) == pytest.approx(0.01)
    assert attained_s(measured(rows), Goal(0.99, 1)) == math.inf
    assert attained_s(measured([]), Goal(0.5, 1)) == math.inf


def test_what_is_on_its_way_as_measuring_ends_is_not_behind() -> None:
    assert kept_up(measured([(2 + i / 10, 1.0, "") for i in range(100)]))


def test_a_queue_that_grows_shows_in_a_few_seconds() -> None:
    """22 arrivals a second for 6 s, of which 19 a second are answered."""
    rows = [(2 + i / 22, 0.05 + max(0.0, i / 19 - i / 22), "") for i in range(132)]
    assert not kept_up(replace(measured(rows), plan=replace(PLAN, duration_s=6.0)))
