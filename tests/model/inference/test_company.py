"""How much the other pictures of a batch may change a picture's detections, by device and precision.

The figures of docs/architecture.md: with the bundled weights, for pictures of one padded shape.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.build import from_checkpoint, resolve_checkpoint
from model.data.synthetic import SyntheticData
from model.inference.build import serving_model
from model.inference.precision import cpu_has_bfloat16
from model.inference.serving import ServingModel
from model.structures import Detection
from model.weights.checkpoints import bundled_is_present

pytestmark = pytest.mark.skipif(not bundled_is_present(), reason="the bundled weights are not built")

CPU, GPU = torch.device("cpu"), torch.device("cuda")
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
native_bf16 = pytest.mark.skipif(not cpu_has_bfloat16(), reason="bf16 takes minutes on this processor")
SURE = 0.5


@pytest.fixture(scope="module")
def pictures() -> list[Tensor]:
    data = SyntheticData("test", count=4, size_hw=(192, 256))
    return [data[index][0] for index in range(4)]


def form_of(device: torch.device, precision: str) -> ServingModel:
    model = from_checkpoint(resolve_checkpoint("bundled"), min_size=192, max_size=256)
    return serving_model(model, device=device, precision=precision)


def largest_move(alone: Detection, together: Detection) -> float:
    """Pixels, of a detection with a sure score; each has to be found again with its class and about its score."""
    sure = alone["scores"] > SURE
    assert sure.any()
    moved = (alone["boxes"][sure][:, None] - together["boxes"]).abs().amax(-1)
    is_same = alone["labels"][sure][:, None] == together["labels"]
    is_same &= (alone["scores"][sure][:, None] - together["scores"]).abs() < 0.02
    return float(moved.masked_fill(~is_same, torch.inf).min(dim=1).values.max())


@pytest.mark.parametrize(
    ("device", "precision", "pixels"),
    [
        pytest.param(CPU, "fp32", 0.001, id="cpu-fp32"),
        pytest.param(CPU, "bf16", 0.1, id="cpu-bf16", marks=native_bf16),
        *(pytest.param(GPU, name, 0.5, id=f"gpu-{name}", marks=on_gpu) for name in ("tf32", "fp16", "bf16")),
    ],
)
def test_company_moves_boxes_by_less_than(
    device: torch.device, precision: str, pixels: float, pictures: list[Tensor]
) -> None:
    form = form_of(device, precision)
    for count in (2, 4):
        for picture, together in zip(pictures, form.detect(pictures[:count]), strict=False):
            assert largest_move(form.detect([picture])[0], together) < pixels


@pytest.mark.parametrize("device", [pytest.param(GPU, id="gpu-fp32", marks=on_gpu)])
def test_company_changes_no_bit(device: torch.device, pictures: list[Tensor]) -> None:
    form = form_of(device, "fp32")
    for count in (2, 4):
        for picture, together in zip(pictures, form.detect(pictures[:count]), strict=False):
            (alone,) = form.detect([picture])
            assert all(torch.equal(alone[key], together[key]) for key in ("boxes", "labels", "scores"))


@pytest.mark.parametrize("precision", [pytest.param(name, marks=on_gpu) for name in ("tf32", "fp16", "bf16")])
def test_a_gpu_finds_in_short_precisions_what_it_finds_in_float32(precision: str, pictures: list[Tensor]) -> None:
    from model.inference.agreement import agreement

    exact, form = form_of(GPU, "fp32"), form_of(GPU, precision)
    for picture in pictures:
        share = agreement(exact.detect([picture])[0], form.detect([picture])[0])
        assert share is not None
        assert share > 0.95
