"""What each precision may cost: average precision by COCO's rules on real images, with trained weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from model.build import from_checkpoint, resolve_checkpoint
from model.data.voc import read_voc
from model.evaluation.average_precision import detect_all, evaluate
from model.inference.build import serving_model
from model.inference.calibration import calibration_pictures
from model.weights.checkpoints import bundled_is_present

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not bundled_is_present(), reason="the bundled weights are not built"),
]


Measure = Callable[[str], float]


@pytest.fixture(scope="module")
def average_precision(bccd: Path, tmp_path_factory: pytest.TempPathFactory) -> Measure:
    """Of the bundled weights in a precision, in points of 100."""
    checkpoint = resolve_checkpoint("bundled")
    data, _ = read_voc(bccd, "val", categories=checkpoint.categories, keep_empty=True)

    def measure(precision: str) -> float:
        threads = torch.get_num_threads()
        torch.set_num_threads(2)  # pictures of a real size gain by it, other than the other tests'
        try:
            form = serving_model(
                from_checkpoint(checkpoint),
                device=CPU,
                precision=precision,
                calibration=partial(calibration_pictures, bccd / "JPEGImages", 30),
                cache=tmp_path_factory.mktemp("cache"),
            )
            found = detect_all(form.detect, data)
        finally:
            torch.set_num_threads(threads)
        return 100 * (evaluate(data, found, checkpoint.categories).overall.ap or 0.0)

    return measure


@pytest.fixture(scope="module")
def exact(average_precision: Measure) -> float:
    return average_precision("fp32")


def test_bfloat16_costs_at_most_a_fifth_of_a_point(average_precision: Measure, exact: float) -> None:
    assert average_precision("bf16") >= exact - 0.2


def test_int8_costs_at_most_two_fifths_of_a_point(average_precision: Measure, exact: float) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    assert average_precision("int8") >= exact - 0.4
