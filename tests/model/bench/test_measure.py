from __future__ import annotations

import json

import pytest
import torch

from model.bench.measure import BASELINE, _peaks_gflops, available_backends, available_precisions, bench_model, lively
from model.build import random_checkpoint
from model.inference.precision import candidates
from model.weights.checkpoints import Checkpoint, CheckpointInfo

CPU = torch.device("cpu")


# Not where it would be imitated, and take minutes.
BF16_AUTOCAST = ["torchvision bf16 autocast"] if "bf16" in candidates(CPU) else []


def small_checkpoint() -> Checkpoint:
    random = random_checkpoint()
    info = CheckpointInfo(class_names=random.info.class_names, model_kwargs={"min_size": 64, "max_size": 96})
    return Checkpoint(name="random", state_dict=random.state_dict, info=info)


def test_every_form_is_measured_against_torchvision() -> None:
    rounds = []
    precisions = [name for name in ("fp32", "bf16") if name in available_precisions(CPU)]
    result = bench_model(
        lively(small_checkpoint()),
        device=CPU,
        precisions=precisions,
        size_hw=(48, 64),
        batch_sizes=[2],
        rounds=2,
        memory=False,
        advance=lambda: rounds.append(1),
    )
    assert len(rounds) == 3  # the first prepares
    assert {(form.name, form.batch_size) for form in result.forms} == {
        (name, size)
        for name in (BASELINE, *BF16_AUTOCAST, *(f"ours {precision}" for precision in precisions))
        for size in (1, 2)
    }
    assert result.padded_hw == (64, 96)
    # Convolutions in proportion to the padded area of 800 x 1088, and a box head for at most 1000 proposals.
    assert 1 < result.gflop < 60
    for form in result.forms:
        assert form.images_per_s == pytest.approx(form.batch_size / form.seconds)
        assert form.ratio > 0
        assert (form.stages.keys() == {"preprocess", "network", "proposals", "roi", "post"}) == (
            form.name.startswith("ours") and form.batch_size == 1
        )
    (baseline,) = [form for form in result.forms if (form.name, form.batch_size) == (BASELINE, 1)]
    assert baseline.ratio == 1.0
    assert json.loads(json.dumps(result.as_json()))["machine"]["torch"] == torch.__version__


def test_openvino_is_a_form_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr("model.bench.measure._peaks_gflops", lambda *_: {"fp32": 100.0})
    result = bench_model(
        lively(small_checkpoint()),
        device=CPU,
        precisions=["fp32"],
        backends=available_backends(CPU),
        size_hw=(48, 64),
        rounds=1,
        memory=False,
    )
    measured = {form.name: form for form in result.forms}
    assert set(measured) == {BASELINE, *BF16_AUTOCAST, "ours fp32", "ours fp32 openvino"}
    assert measured["ours fp32 openvino"].share_of_peak is not None


def test_int8_has_no_share_of_a_peak_that_torch_does_not_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's product of matrices in 8 bits takes a hundred times as long as OpenVINO's where a CPU has no AVX-512."""
    monkeypatch.setattr("model.bench.measure._peak_gflops", lambda *_: 100.0)
    assert "int8" not in _peaks_gflops(["fp32", "int8"], CPU)


def test_forms_that_find_other_things_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"boxes": torch.zeros(1, 4), "labels": torch.ones(1, dtype=torch.int64), "scores": torch.ones(1)}
    monkeypatch.setattr("model.inference.serving.ServingModel.detect", lambda *_args, **_kwargs: [wrong])
    with pytest.raises(ValueError, match="do not find the same"):
        bench_model(
            lively(small_checkpoint()), device=CPU, precisions=["fp32"], size_hw=(48, 64), rounds=1, memory=False
        )


def test_what_the_device_has() -> None:
    assert "fp32" in available_precisions(CPU)
    assert ("bf16" in available_precisions(CPU)) == bool(BF16_AUTOCAST)
    assert not {"fp16", "tf32"} & set(available_precisions(CPU))
