"""The serving form for a device and a precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model import fasterrcnn_resnet50_fpn
from model.inference.build import serving_model
from model.inference.errors import PrecisionError, UncalibratedError
from model.inference.precision import candidates
from model.weights.checkpoints import bundled_is_present
from tests.support.oracle import blobs, make_pair

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"min_size": 96, "max_size": 160, "rpn_post_nms_top_n_test": 100}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
def test_torch_forms(precision: str) -> None:
    _, model = make_pair(**SMALL)
    served = serving_model(model, device=CPU, precision=precision)
    assert served.precision == precision if precision != "auto" else served.precision in candidates(CPU)
    (found,) = served.detect([blobs(90, 120)])
    assert len(found["labels"]) > 5
    assert served.padded_hw((90, 120)) == (96, 128)


def test_auto_stays_with_float32_where_rounding_changes_the_answer() -> None:
    _, model = make_pair(**SMALL)  # weights drawn by chance, whose scores rounding shuffles
    assert serving_model(model, device=CPU).precision == "fp32"


@pytest.mark.skipif(not bundled_is_present(), reason="the bundled weights are not built")
def test_auto_takes_what_is_faster_where_it_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fasterrcnn_resnet50_fpn(weights="bundled")
    monkeypatch.setattr("model.inference.build.candidates", lambda _device: ["fp32", "bf16"])
    monkeypatch.setattr("model.inference.build.fastest", lambda _runs: "bf16")
    assert serving_model(model, device=CPU).precision == "bf16"


@pytest.mark.parametrize("precision", ["int8", "auto"])
def test_int8_that_is_not_calibrated_is_told_before_anything_is_measured(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    monkeypatch.setattr("model.inference.build._torch_form", None)
    _, model = make_pair(**SMALL)
    with pytest.raises(UncalibratedError):
        serving_model(
            model,
            device=CPU,
            precision=precision,
            backend="auto",
            calibration=lambda: [blobs(90, 120)],
            calibrate=False,
            cache=tmp_path,
        )


def test_a_precision_the_device_has_not_is_rejected() -> None:
    _, model = make_pair(**SMALL)
    with pytest.raises(PrecisionError, match="GPU"):
        serving_model(model, device=CPU, precision="fp16")
