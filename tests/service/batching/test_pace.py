from __future__ import annotations

import math

import pytest

from service.batching.pace import _AHEAD_S, _MOST_KINDS, Pace

SHAPE = (800, 1088)


def test_a_batch_follows_shortly_before_the_one_ahead_is_over() -> None:
    pace = Pace()
    pace.measure(SHAPE, 4, 0.010)
    assert pace.follow_at(SHAPE, 4, started=5.0) == pytest.approx(5.010 - _AHEAD_S)


def test_of_a_kind_that_is_not_known_it_is_not_said_when_it_is_over() -> None:
    pace = Pace()
    pace.measure(SHAPE, 4, 0.010)
    assert pace.follow_at(SHAPE, 8, started=5.0) == math.inf
    assert pace.follow_at((768, 1344), 4, started=5.0) == math.inf


def test_a_slow_first_batch_is_soon_forgotten() -> None:
    pace = Pace()
    for seconds in [0.500, *[0.010] * 8]:
        pace.measure(SHAPE, 1, seconds)
    assert 0.010 < pace.follow_at(SHAPE, 1, started=0.0) + _AHEAD_S < 0.012


def test_what_is_known_is_bounded_and_the_oldest_kind_goes_first() -> None:
    pace = Pace()
    for size in range(1, _MOST_KINDS + 1):
        pace.measure(SHAPE, size, 0.01)
    pace.measure(SHAPE, 1, 0.01)
    pace.measure((32, 32), 1, 0.01)
    assert pace.follow_at(SHAPE, 2, 0.0) == math.inf
    assert pace.follow_at(SHAPE, 1, 0.0) < math.inf
