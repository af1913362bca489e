from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model.data.synthetic import SyntheticData
from model.evaluation.average_precision import Metrics, Precision
from model.training import judge as module
from model.training.detector import result_info
from model.training.judge import Judge, Verdict
from model.training.settings import TrainSettings
from model.weights.checkpoints import read_checkpoint
from tests.support.tiny_run import tiny_detector, tiny_settings

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE_HW = (96, 128)


def judge_of(path: Path, settings: TrainSettings, *, validated: bool = True) -> Judge:
    return Judge(
        tiny_detector(settings),
        data=SyntheticData("train", count=5, size_hw=SIZE_HW),
        validation=SyntheticData("val", count=2, size_hw=SIZE_HW) if validated else None,
        settings=settings,
        norm_batch_size=2,
        path=path,
        info=result_info(None, SyntheticData.categories, settings),
    )


def weights(settings: TrainSettings) -> dict[str, torch.Tensor]:
    """Random ones, positive so that they do for variances too."""
    state = tiny_detector(settings).state_dict()
    return {key: torch.rand_like(tensor) if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def kept(path: Path) -> torch.Tensor:
    return read_checkpoint(path).state_dict["rpn.head.cls_logits.bias"]


def test_the_best_weights_are_kept_and_of_equals_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, path = tiny_settings(1), tmp_path / "best.safetensors"
    one = judge_of(path, settings)
    state = tiny_detector(settings).state_dict()
    aps: list[float | None] = [None, 0.3, 0.2, 0.3]
    verdicts, biases = [], []
    for number, ap in enumerate(aps):
        found = Precision(ap=ap, ap50=ap, ap75=ap, recall=ap, boxes=3)
        metrics = Metrics(images=2, overall=found, by_class={}, by_size={}, curves={})
        monkeypatch.setattr(module, "evaluate", lambda *_, metrics=metrics: metrics)
        bias = torch.full_like(state["rpn.head.cls_logits.bias"], float(number))
        verdicts.append(one.judge(state | {"rpn.head.cls_logits.bias": bias}, advance=lambda: None))
        assert verdicts[-1].metrics is metrics
        biases.append(kept(path)[0].item())
    assert [verdict.is_best for verdict in verdicts] == [True, True, False, True]
    assert biases == [0, 1, 1, 3]
    assert one.best_ap == 0.3


def test_without_validation_data_the_last_weights_are_kept(tmp_path: Path) -> None:
    settings, path = tiny_settings(1), tmp_path / "best.safetensors"
    one = judge_of(path, settings, validated=False)
    state = tiny_detector(settings).state_dict()
    for number in (2.0, 1.0):
        bias = torch.full_like(state["rpn.head.cls_logits.bias"], number)
        verdict = one.judge(state | {"rpn.head.cls_logits.bias": bias}, advance=lambda: None)
        assert verdict == Verdict(metrics=None, is_best=True)
        assert kept(path).unique().tolist() == [number]
    assert one.best_ap is None


def test_an_evaluation_that_is_ended_keeps_nothing(tmp_path: Path) -> None:
    settings = tiny_settings(1)
    one = judge_of(tmp_path / "best.safetensors", settings)
    seen = 0

    def advance() -> None:
        nonlocal seen
        seen += 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.judge(tiny_detector(settings).state_dict(), advance=advance)
    assert (seen, one.best_ap, list(tmp_path.iterdir())) == (1, None, [])


@pytest.mark.parametrize("changes", [{"live_norm": True, "norm_images": 0}, {"live_norm": False}])
def test_batch_norm_is_the_averages_unless_it_learns_and_is_measured(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings, path = tiny_settings(1, **changes), tmp_path / "best.safetensors"
    average = weights(settings)
    judge_of(path, settings, validated=False).judge(average, advance=lambda: None)
    for key, tensor in read_checkpoint(path).state_dict.items():
        assert tensor.equal(average[key]), key


def test_live_batch_norm_is_measured_again_on_training_images(tmp_path: Path) -> None:
    settings = tiny_settings(1, live_norm=True, norm_images=4)
    one = judge_of(tmp_path / "best.safetensors", settings, validated=False)
    average = weights(settings)
    one.load(average)
    measured = one.model.state_dict()
    changed = {key for key in measured if not measured[key].equal(average[key])}
    assert changed
    assert all(key.endswith(("running_mean", "running_var", "num_batches_tracked")) for key in changed)
