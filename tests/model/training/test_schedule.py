from __future__ import annotations

import pytest
import torch
from torch import nn

from model.training.averaging import MovingAverage
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


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="cosine, onecycle, step"):
        rate_factor("flat", 0, 10, 0)


def test_the_average_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = MovingAverage(model, decay=0.9)
    model.weight.data.fill_(1.0)
    average.update(model)  # decay min(0.9, 2 / 11): 9 / 11 of the new value
    assert average.state_dict["weight"].item() == pytest.approx(9 / 11)
    average.update(model)  # decay 3 / 12
    assert average.state_dict["weight"].item() == pytest.approx(1 - 2 / 11 * 3 / 12)


def test_an_average_without_decay_is_the_model() -> None:
    model = nn.BatchNorm1d(2)
    average = MovingAverage(model, decay=0.0)
    model(torch.randn(8, 2))
    average.update(model)
    assert all(average.state_dict[key].equal(tensor) for key, tensor in model.state_dict().items())
