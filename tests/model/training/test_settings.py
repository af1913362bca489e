from __future__ import annotations

import pytest

from model.training.settings import TrainSettings


@pytest.mark.parametrize("balance", [-0.1, 1.1, float("nan")])
def test_a_balance_beyond_alike_is_rejected(balance: float) -> None:
    with pytest.raises(ValueError, match="class_balance must be from 0 to 1, not"):
        TrainSettings(iterations=1, class_balance=balance)
