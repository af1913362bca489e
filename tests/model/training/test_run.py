from __future__ import annotations

from pathlib import Path
from typing import Never

import pytest
import torch

from model import build
from model.build import random_checkpoint, resolve_checkpoint
from model.data.samples import DataError
from model.data.synthetic import SyntheticData
from model.evaluation import average_precision as evaluation
from model.training import run
from model.training.processes import Processes
from model.training.settings import TrainSettings
from model.weights.checkpoints import WeightsError, WeightsUnavailableError, save_checkpoint


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def reject(*_: object, **__: object) -> Never:
        raise WeightsUnavailableError("no network [/here]")

    for name in ("fetch_coco", "read_coco"):
        monkeypatch.setattr(build, name, reject)


@pytest.mark.usefixtures("_offline")
def test_auto_begins_with_the_first_weights_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(run, "bundled_is_present", lambda: False)
    assert run.read_start("auto", told.append) is None
    assert "no network [/here]" in told[0]
    assert "untrained" in told[-1]

    bundled = random_checkpoint()
    told.clear()
    monkeypatch.setattr(run, "bundled_is_present", lambda: True)
    monkeypatch.setattr(build, "read_bundled", lambda: bundled)
    assert run.read_start("auto", told.append) is bundled
    (once,) = [text for text in told if "no network" in text]
    assert "no network [/here]; the bundled weights are used instead" in once


def test_a_missing_evaluator_is_noticed_before_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(evaluation, "find_spec", lambda _: None)
    data = SyntheticData(count=2, size_hw=(64, 64))
    request = run.RunRequest(
        data=data, validation=data, begin=None, settings=TrainSettings(iterations=1), folder=tmp_path / "out"
    )
    alone = Processes(rank=0, count=1, device=torch.device("cpu"))
    with pytest.raises(DataError, match="pip install"):
        run.run_training(request, alone, print)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("_offline")
def test_weights_by_name(tmp_path: Path) -> None:
    assert resolve_checkpoint("random").name == "random"
    with pytest.raises(WeightsUnavailableError):
        resolve_checkpoint("COCO_V1")
    with pytest.raises(WeightsError, match="no such file"):
        resolve_checkpoint(str(tmp_path / "a.pth"))
    checkpoint = random_checkpoint()
    save_checkpoint(tmp_path / "a.pth", checkpoint.state_dict, checkpoint.info)
    begin = run.read_start(str(tmp_path / "a.pth"), print)
    assert begin is not None
    assert begin.name == "a.pth"
    assert run.read_start("none", print) is run.read_start("random", print) is None
