"""What each precision may cost: average precision by COCO's rules on real images, with trained weights.

87 images say little about tenths of a point: the same int8 network cost 0.1 to 0.5 points, by how a processor rounds.
So a precision fails where the images show that it costs more than it may: by a one-sided test at 5 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from statistics import stdev

import pytest
import torch
from torch import Tensor

from model.build import from_checkpoint, resolve_checkpoint
from model.data.samples import DetectionData
from model.data.voc import read_voc
from model.evaluation.average_precision import detect_all, evaluate
from model.inference.build import serving_model
from model.inference.calibration import calibration_pictures
from model.inference.precision import candidates
from model.structures import Detection, SizeHW, Target
from model.weights.checkpoints import Checkpoint, bundled_is_present

CPU = torch.device("cpu")
HALVES = 40
ONE_SIDED = 1.645  # standard deviations: a normal number exceeds them in one of twenty cases
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not bundled_is_present(), reason="the bundled weights are not built"),
]
Detections = list[Detection]


class Part:
    """Some of the images of a set."""

    def __init__(self, whole: DetectionData, which: Sequence[int]) -> None:
        self.categories = whole.categories
        self._whole, self._which = whole, which

    def __len__(self) -> int:
        return len(self._which)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return self._whole[self._which[index]]

    def name(self, index: int) -> str:
        return self._whole.name(self._which[index])

    def size_hw(self, index: int) -> SizeHW:
        return self._whole.size_hw(self._which[index])

    def target(self, index: int) -> Target:
        return self._whole.target(self._which[index])

    def fingerprint(self) -> str:
        return f"{self._whole.fingerprint()} {self._which}"

    def areas(self, index: int) -> Tensor:
        return self._whole.areas(self._which[index])

    def crowd_boxes(self, index: int) -> tuple[Tensor, Tensor]:
        return self._whole.crowd_boxes(self._which[index])


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return resolve_checkpoint("bundled")


@pytest.fixture(scope="module")
def data(bccd: Path, checkpoint: Checkpoint) -> DetectionData:
    return read_voc(bccd, "val", categories=checkpoint.categories, keep_empty=True)[0]


@pytest.fixture(scope="module")
def detections(
    bccd: Path, checkpoint: Checkpoint, data: DetectionData, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Detections]:
    """`detections(precision)`: what the bundled weights find in it."""

    def detect(precision: str) -> Detections:
        form = serving_model(
            from_checkpoint(checkpoint),
            device=CPU,
            precision=precision,
            calibration=partial(calibration_pictures, bccd / "JPEGImages", 30),
            cache=tmp_path_factory.mktemp("cache"),
        )
        return detect_all(form.detect, data)

    return detect


@pytest.fixture(scope="module")
def exact(detections: Callable[[str], Detections]) -> Detections:
    return detections("fp32")


def costs_at_most(points: float, data: DetectionData, exact: Detections, found: Detections) -> None:
    """Compare two precisions' average precision, in points of 100.

    The costs of halves, drawn without replacement, spread as those of whole sets do.
    """

    def cost(which: Sequence[int]) -> float:
        part = Part(data, which)
        first, second = (evaluate(part, [of[n] for n in which]).overall.ap or 0.0 for of in (exact, found))
        return 100 * (first - second)

    draw = Random(0)
    spread = stdev(cost(draw.sample(range(len(data)), len(data) // 2)) for _ in range(HALVES))
    measured = cost(range(len(data)))
    print(f"RECORD cost: {measured:.3f} points, standard deviation {spread:.3f}")
    assert measured - ONE_SIDED * spread <= points


@pytest.mark.skipif("bf16" not in candidates(CPU), reason="bf16 is imitated on this processor, which takes minutes")
def test_bfloat16_costs_at_most_a_fifth_of_a_point(
    data: DetectionData, exact: Detections, detections: Callable[[str], Detections]
) -> None:
    costs_at_most(0.2, data, exact, detections("bf16"))


def test_int8_costs_at_most_two_fifths_of_a_point(
    data: DetectionData, exact: Detections, detections: Callable[[str], Detections]
) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    costs_at_most(0.4, data, exact, detections("int8"))


def test_what_costs_more_is_noticed(data: DetectionData, exact: Detections) -> None:
    """Boxes that are off by a pixel, and one in fifty lost."""
    keep = Random(1)
    worse = []
    for found in exact:
        kept = torch.tensor([keep.random() < 0.98 for _ in found["labels"]], dtype=torch.bool)
        worse.append(
            Detection(boxes=found["boxes"][kept] + 1.0, labels=found["labels"][kept], scores=found["scores"][kept])
        )
    with pytest.raises(AssertionError):
        costs_at_most(0.4, data, exact, worse)
