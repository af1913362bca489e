"""See `tests/model/test_default_device.py`: the same of training."""

from __future__ import annotations

import pytest
import torch

from model.data.synthetic import SyntheticData
from model.training.processes import Processes
from model.training.trainer import Trainer


@pytest.mark.parametrize("changes", [{}, {"live_norm": True, "clip_norm": 1.0, "box_loss": "giou", "accumulate": 2}])
def test_a_run(changes, tiny, tmp_path, no_default_device):
    settings = tiny.tiny_settings(2, **changes)
    data = SyntheticData("train", count=8, size_hw=(96, 128))
    detector = tiny.tiny_detector(settings, len(data.categories))
    with no_default_device():
        Trainer(
            model=detector,
            categories=data.categories,
            data=data,
            validation=None,
            settings=settings,
            folder=tmp_path,
            processes=Processes(rank=0, count=1, device=torch.device("cpu")),
        ).run()
