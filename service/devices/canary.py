"""The picture that every device is asked about, and whether it still answers as it did when the model was loaded.

A device can be wrong without an error: memory decays, a driver fails in silence. An answer that is wrong is worse than
none, and nothing but an answer shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.data.synthetic import SyntheticData
from model.inference.agreement import disagreement, raw_disagreement
from model.structures import Detection


class WrongAnswerError(Exception):
    """The device answers, but not as it did at first. The message tells the difference."""


class Found(Protocol):
    """What was found in a picture: see `Detections`."""

    @property
    def boxes(self) -> NDArray[np.float32]: ...

    @property
    def labels(self) -> NDArray[np.int64]: ...

    @property
    def scores(self) -> NDArray[np.float32]: ...


class Asked(Protocol):
    """What is asked: a `Detector`."""

    @property
    def precision(self) -> str: ...

    def detect(self, images: Sequence[Tensor]) -> Sequence[Found]: ...


@runtime_checkable
class RawScoring(Protocol):
    """A detector that tells its scores before any threshold: an untrained one finds nothing to compare by."""

    def raw_scores(self, image: Tensor) -> Tensor:
        """See `ServingModel.raw_scores`."""
        ...


class KnownAnswer(NamedTuple):
    """What a detector answers to `known_picture`."""

    found: Detection
    raw: Tensor | None  # of a detector that finds nothing


@cache
def known_picture() -> Tensor:
    """The built-in picture: blood cells, drawn; uint8 `[3, 240, 320]`, which pads as the usual 640x480 does."""
    return SyntheticData(count=1, size_hw=(240, 320))[0][0]


def ask(detector: Asked) -> KnownAnswer:
    """Have the detector answer for the known picture. Blocks; whatever it raises tells that it cannot."""
    picture = known_picture()
    found = detector.detect([picture])[0]
    raw = detector.raw_scores(picture) if not len(found.scores) and isinstance(detector, RawScoring) else None
    tensors = (torch.from_numpy(values) for values in (found.boxes, found.labels, found.scores))
    boxes, labels, scores = tensors
    return KnownAnswer(Detection(boxes=boxes, labels=labels, scores=scores), raw)


def check_answer(detector: Asked, known: KnownAnswer) -> None:
    """Ask the detector, and compare its answer with the known one, within the tolerance of its precision. Blocks.

    Raises:
        WrongAnswerError: it differs.
        Exception: whatever the detector raises.
    """
    answer = ask(detector)
    reason = disagreement(known.found, answer.found, detector.precision)
    if reason is None and known.raw is not None:
        reason = (
            "it has no raw scores"
            if answer.raw is None
            else raw_disagreement(known.raw, answer.raw, detector.precision)
        )
    if reason is not None:
        raise WrongAnswerError(reason)
