"""See `tests/model/test_default_device.py`: the same of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model.data.synthetic import SyntheticData
from model.training.processes import Processes
from model.training.trainer import Trainer
from tests.support import tiny_run
from tests.support.default_device import NoDefaultDevice


@pytest.mark.parametrize("changes", [{}, {"live_norm": True, "clip_norm": 1.0, "box_loss": "giou", "accumulate": 2}])
def test_a_run(changes: dict[str, Any], tmp_path: Path) -> None:
    settings = tiny_run.tiny_settings(2, **changes)
    data = SyntheticData("train", count=8, size_hw=(96, 128))
    detector = tiny_run.tiny_detector(settings, len(data.categories))
    with NoDefaultDevice():
        Trainer(
            model=detector,
            categories=data.categories,
            data=data,
            validation=None,
            settings=settings,
            folder=tmp_path,
            processes=Processes(rank=0, count=1, device=torch.device("cpu")),
        ).run()
