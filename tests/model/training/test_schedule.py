from __future__ import annotations

import pytest

from model.training.schedule import rate_factor


def test_step_divides_by_ten_after_two_thirds_and_eleven_twelfths() -> None:
    factors = [rate_factor("step", iteration, 12, 0) for iteration in (0, 7, 8, 10, 11)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_cosine_starts_at_one_and_is_half_in_the_middle() -> None:
    assert rate_factor("cosine", 0, 100, 0) == 1
    assert rate_factor("cosine", 50, 100, 0) == pytest.approx(0.5)
    assert rate_factor("cosine", 99, 100, 0) < 0.001


def test_onecycle_peaks_after_a_quarter() -> None:
    factors = [rate_factor("onecycle", iteration, 100, 0) for iteration in range(100)]
    assert factors[0] == pytest.approx(1 / 25)
    assert max(factors) == factors[25] == 1
    assert factors[99] < 0.001


def test_warmup_rises_linearly() -> None:
    assert [rate_factor("step", iteration, 100, 3) for iteration in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1])


def test_an_unknown_schedule_is_rejected() -> None:
    with pytest.raises(ValueError, match="cosine, onecycle, step"):
        rate_factor("flat", 0, 10, 0)
