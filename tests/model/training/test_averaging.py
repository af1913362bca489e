from __future__ import annotations

import pytest
import torch
from torch import nn

from model.training.averaging import MovingAverage


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
