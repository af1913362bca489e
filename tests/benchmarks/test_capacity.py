"""The simulation behind docs/scaling.md, held to queues whose waiting is known."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from capacity import Outcome, Replica, Simulation, highest_rate, waiting_in_theory_s


def simulate(replica: Replica, rate: float, images: int = 40_000, **options: Any) -> Outcome:
    return Simulation(replica, rate=rate, **options).run(images)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_at_a_time_it_waits_as_long_as_theory_says(load: float) -> None:
    replica = Replica(fixed_s=0.02)
    outcome = simulate(replica, load / 0.02)
    waited_s = statistics.fmean(outcome.latencies_s) - 0.02
    assert waited_s == pytest.approx(waiting_in_theory_s(replica, load / 0.02), rel=0.1)
    assert outcome.device_busy == pytest.approx(load, rel=0.03)


def test_alone_an_image_takes_what_it_costs() -> None:
    replica = Replica(fixed_s=0.02, image_s=0.005, decode_s=0.004, other_s=0.001, max_batch_size=8)
    outcome = simulate(replica, 0.01, 200)
    assert outcome.latencies_s == pytest.approx([0.03] * 180)
    assert set(outcome.batch_sizes) == {1}


def test_batches_carry_what_single_images_could_not() -> None:
    replica = Replica(fixed_s=0.02, max_batch_size=8)
    assert replica.most_per_s == 400
    outcome = simulate(replica, 320)  # 6.4 times what it would carry one at a time
    assert outcome.percentile_s(99) < 0.1
    assert 6 < statistics.fmean(outcome.batch_sizes) <= 8


def test_of_many_shapes_more_images_wait_until_their_batches_are_as_large() -> None:
    one, many = (simulate(Replica(fixed_s=0.02, max_batch_size=8, shapes=n), 150, 10_000) for n in (1, 20))
    # Both carry 150 a second, so their batches are of 3; those of one shape are found sooner.
    assert statistics.fmean(one.batch_sizes) == pytest.approx(3, abs=0.1)
    assert statistics.fmean(many.batch_sizes) == pytest.approx(3, abs=0.1)
    assert many.percentile_s(50) > 3 * one.percentile_s(50)


def test_decoding_is_the_bound_where_it_is_slower_than_the_device() -> None:
    replica = Replica(fixed_s=0.001, max_batch_size=8, decode_s=0.01, cores=2)
    assert replica.most_per_s == 200
    assert simulate(replica, 190, 10_000).percentile_s(50) > 0.012
    assert highest_rate(replica, 0.05, images=4000) < 200


@pytest.mark.slow
def test_the_highest_rate_meets_the_goal_and_a_little_more_does_not() -> None:
    replica = Replica(fixed_s=0.02)
    rate = highest_rate(replica, 0.1)
    assert simulate(replica, rate, 20_000).percentile_s(99) <= 0.1
    assert simulate(replica, 1.1 * rate, 20_000).percentile_s(99) > 0.1
    assert highest_rate(replica, 0.01) == 0


def test_two_choices_even_out_many_replicas() -> None:
    replica = Replica(fixed_s=0.02)
    alone, many = simulate(replica, 40, 20_000), simulate(replica, 640, 20_000, replicas=16)
    assert many.percentile_s(99) < alone.percentile_s(99)
    assert many.device_busy == pytest.approx(0.8, rel=0.05)
