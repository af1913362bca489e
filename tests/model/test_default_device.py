"""No form that serves and no training step creates a tensor without saying on which device.

On a CPU the default device is right by chance, so only this test finds there what fails on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from model import fasterrcnn_resnet50_fpn
from model.faster_rcnn import FasterRCNN
from model.inference.build import serving_model
from tests.support.default_device import NoDefaultDevice
from tests.support.oracle import pin_scales

CPU = torch.device("cpu")
# An untrained model may be sure of the background: without a threshold each proposal is still a detection.
SMALL: dict[str, Any] = {
    "min_size": 64,
    "max_size": 96,
    "rpn_pre_nms_top_n_test": 8,
    "rpn_post_nms_top_n_test": 1,
    "box_score_thresh": 0.0,
}


@pytest.mark.parametrize(
    "create",
    [
        lambda: torch.zeros(2),
        lambda: torch.tensor([1.0]),
        lambda: torch.as_tensor([1.0]),
        lambda: torch.nn.Conv2d(1, 1, 1),
        lambda: torch.nn.BatchNorm2d(1),
    ],
)
def test_the_default_device_is_rejected(create: Callable[[], object]) -> None:
    with NoDefaultDevice(), pytest.raises(AssertionError, match="without a device"):
        create()


def test_a_named_device_is_accepted() -> None:
    with NoDefaultDevice():
        x = torch.zeros(2, device=CPU)
        assert torch.as_tensor(x).new_ones(2).device == x.device
        torch.nn.Conv2d(1, 1, 1, device="cpu")


@pytest.fixture(scope="module")
def model() -> FasterRCNN:
    """Untrained: its detections mean nothing, but every stage has work."""
    model = fasterrcnn_resnet50_fpn(num_classes=4, **SMALL).eval()
    pin_scales(model)
    return model


@pytest.fixture
def picture() -> Tensor:
    return torch.randint(0, 256, (3, 60, 80), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
def test_forms_of_a_cpu(precision: str, model: FasterRCNN, picture: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.inference.build.candidates", lambda _device: ["fp32", "bf16"])
    monkeypatch.setattr("model.inference.build.fastest", lambda runs: [run() for run in runs.values()] and "bf16")
    monkeypatch.setattr("model.inference.build.calibration_pictures", lambda count: [picture])
    with NoDefaultDevice():
        form = serving_model(model, device=CPU, precision=precision)
        (found,) = form.detect([picture])
    assert len(found["labels"]) > 0


def test_plain_form_with_votes(model: FasterRCNN, picture: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector as it evaluates in training."""
    monkeypatch.setattr(model.roi_heads, "vote_thresh", 0.5)
    with torch.no_grad(), NoDefaultDevice():
        (found,) = model([picture / 255])
    assert len(found["labels"]) > 0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_form_of_a_gpu(precision: str, model: FasterRCNN, picture: Tensor) -> None:
    """Its kernels run in Triton's interpreter, and what a graph would record runs once."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the interpreter runs where there is no GPU")
    from model.inference.graphs import GraphedModel
    from model.inference.precision import DTYPES

    class RunOnce:
        def __call__(self, work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
            return (lambda: None), work()

        def forget(self) -> None:
            """Keep nothing."""

    with NoDefaultDevice():
        form = GraphedModel(model, precision=precision, dtype=DTYPES[precision], capture=RunOnce(), candidates=8)
        (found,) = form.detect([picture])
    assert len(found["labels"]) > 0
    assert len(form._graphs) == 1
