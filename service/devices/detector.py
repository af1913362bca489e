"""The seam between serving and the model: pictures in, arrays out, on one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from model.weights.categories import Categories
from service.devices.canary import KnownAnswer, ask
from service.images.pictures import Pixels


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in one picture, best first; boxes xyxy in its pixels."""

    boxes: npt.NDArray[np.float32]  # [D, 4]
    labels: npt.NDArray[np.int64]  # [D]
    scores: npt.NDArray[np.float32]  # [D]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the service says about the model that it serves.

    Attributes:
        iou_threshold: overlap above which the model drops the lower of two detections of a class.
    """

    name: str
    weights: str
    categories: Categories
    iou_threshold: float = 0.5
    version: str = ""  # of the weights: see `Checkpoint.version`


class Detector(Protocol):
    """The seam between serving and the model. One detector belongs to one device and is called by one thread."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def backend(self) -> str:
        """What computes the network: see `serving_model`."""
        ...

    @property
    def best_batch_size(self) -> int:
        """Pictures at a time from which on twice as many gain too little for the time that they wait."""
        ...

    def padded_shape(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """The shape of a batch in which a picture of `size_hw` gets the answer it would get alone."""
        ...

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detect in uint8 `[3, H, W]` pictures of any strides, all of one padded shape. Blocks until it is done."""
        ...


class Launched(Protocol):
    """A batch that a device works on."""

    def wait(self) -> None:
        """Block until the device is done with it. Called in another thread than what else the detector does."""
        ...

    def fetch(self) -> list[Detections]:
        """What was found. Called once, after `wait`, by the detector's thread."""
        ...


@runtime_checkable
class Pipelined(Protocol):
    """A detector whose device works without the host: it takes pictures early, and a batch while it runs another."""

    def allocate(self, shape: tuple[int, int, int]) -> Pixels:
        """Memory to decode a picture into: see `service.images.pictures.Allocate`. Called by any thread."""
        ...

    def upload(self, image: Tensor) -> Tensor:
        """The picture, on its way to the device or there. Called by any thread."""
        ...

    def launch(self, images: Sequence[Tensor]) -> Launched:
        """Begin to detect, as `detect` does, and return before it is done. Batches are done in the order of launch."""
        ...

    def prepare(self) -> bool:
        """Do a piece of work, well under a second, that makes later batches faster. False when none is left."""
        ...


@runtime_checkable
class Known(Protocol):
    """A detector that has been asked about the known picture when it was loaded."""

    known_answer: KnownAnswer | None


@runtime_checkable
class Interim(Protocol):
    """A detector that may stand in for one in int8, which is not calibrated yet or cannot be."""

    is_interim: bool


def is_interim(detector: Detector) -> bool:
    return isinstance(detector, Interim) and detector.is_interim


def known_answer(detector: Detector) -> KnownAnswer:
    """What the detector said of the known picture when it was loaded; asks it if that has not been done. May block."""
    known = detector.known_answer if isinstance(detector, Known) else None
    return known or ask(detector)
