from __future__ import annotations

import json
import math

import numpy as np
import pytest

from service.loadtest.fleet import Measured
from service.loadtest.plan import Goal, Plan, Target
from service.loadtest.samples import Recorder, Samples
from service.loadtest.search import Step, attained_s, best, highest_rate, kept_up, lowest_missed
from service.loadtest.summary import quantile, summarise

PLAN = Plan(target=Target("h", 1, "/", tls=False), images=(b"1234",), rate=10.0, duration_s=10.0, warmup_s=2.0)
TIMING = b'decode;dur=2.00, inference;dur=5.00, batch;desc="4"'


def measured(rows: list[tuple[float, float, str]], busy: float = 0.1) -> Measured:
    """From (when it was to be sent, how long it took, what failed)."""
    recorder = Recorder()
    for at, took, failure in rows:
        recorder.add(100 + at, 100 + at + 0.001, 100 + at + took, failure, b"" if failure else TIMING)
    return Measured(PLAN, 1, recorder.samples(100.0), busy)


def test_a_quantile_is_the_smallest_value_that_the_share_does_not_exceed() -> None:
    values = np.array([4.0, 1.0, 3.0, 2.0])
    assert [quantile(values, share) for share in (0, 0.25, 0.26, 0.5, 0.75, 0.99, 1)] == [1, 1, 2, 2, 3, 4, 4]
    assert quantile(np.array([1, math.inf]), 0.5) == 1
    assert quantile(np.array([1, math.inf]), 0.51) == math.inf


def test_figures_worked_out_by_hand() -> None:
    rows = [(2 + i / 10, (i + 1) / 1000, "") for i in range(100)]
    rows[9] = (rows[9][0], 7.0, "429 queue-full")
    rows += [(1.0, 5.0, ""), (1.99, 0.001, ""), (12.0, 0.001, "")]  # warm-up, one answered after it, and after the end
    document = summarise(measured(rows))
    assert (document["requests"], document["succeeded"], document["failed"]) == (100, 99, 1)
    assert document["failures"] == {"429 queue-full": 1}
    assert document["offered_per_s"] == 10
    # 99 of the measured ones, less the last, answered at 12.0, and the one of the warm-up answered at 6.0
    assert document["throughput_per_s"] == pytest.approx(9.9)
    latency = document["latency_ms"]
    assert (latency["min"], latency["max"]) == (1, 100)
    assert latency["p50"] == 51  # the 50th of 1..9, 11..100
    assert latency["p95"] == 96
    assert latency["p99"] is latency["p99.9"] is None  # 99 latencies do not tell them
    assert document["batch_sizes"] == {"4": 99}
    assert document["stages_ms"]["inference"]["p50"] == 5
    assert document["stages_ms"]["elsewhere"]["p50"] == pytest.approx(44)
    assert document["stages_ms"]["elsewhere"]["min"] == 0
    assert len(document["timeline"]) == 10
    assert sum(row["failed"] for row in document["timeline"]) == 1
    assert sum(document["histogram_ms"]["counts"]) + document["histogram_ms"]["over"] == 99
    assert document["generator"]["late_ms"]["p50"] == pytest.approx(1)
    assert any("1 requests failed" in warning for warning in document["warnings"])
    shares, values = zip(*document["curve_ms"], strict=True)
    assert list(values) == sorted(values)
    assert shares[0] == 0


def test_few_requests_tell_no_far_percentile() -> None:
    document = summarise(measured([(3.0 + i / 100, 0.01, "") for i in range(4)]))
    latency = document["latency_ms"]
    assert latency["p50"] == latency["p75"] == latency["max"] == 10
    assert [latency[name] for name in ("p90", "p95", "p99", "p99.9")] == [None] * 4
    (warning,) = document["warnings"]
    assert "4 requests are too few to tell p90, p95, p99, p99.9" in warning
    assert summarise(measured([(3.0 + i / 100, 0.01, "") for i in range(100)]))["latency_ms"]["p99"] == 10


def test_a_generator_that_measures_itself_says_so() -> None:
    rows = [(3.0, 0.01, "")] * 100
    (warning,) = summarise(measured(rows, busy=0.95))["warnings"]
    assert "95%" in warning
    assert "more --workers will" in warning
    assert summarise(measured(rows))["warnings"] == []


@pytest.mark.parametrize("rows", [[], [(3.0, 0.1, "503")]])
def test_nothing_succeeded(rows: list[tuple[float, float, str]]) -> None:
    document = summarise(measured(rows))
    assert document["latency_ms"] is None
    assert document["warnings"]
    assert "NaN" not in json.dumps(document)


def test_parts_of_several_processes_are_one() -> None:
    one, other = measured([(2, 0.1, "")]).samples, measured([(3, 0.2, "503")]).samples
    both = Samples.merged([one, other])
    assert both.latency == pytest.approx([0.1, 0.2])
    assert both.failures == ["", "503"]


def test_a_failure_is_never_within_the_goal() -> None:
    rows = [(2 + i / 100, 0.01, "") for i in range(98)] + [(3.0, 0.001, "503"), (3.0, 0.001, "503")]
    assert attained_s(measured(rows), Goal(0.98, 1)) == pytest.approx(0.01)
    assert attained_s(measured(rows), Goal(0.99, 1)) == math.inf
    assert attained_s(measured([]), Goal(0.5, 1)) == math.inf


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


def test_what_is_on_its_way_as_measuring_ends_is_not_behind() -> None:
    assert kept_up(measured([(2 + i / 10, 1.0, "") for i in range(100)]))


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
