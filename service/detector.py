"""The model as the service sees it: pictures in, arrays out, on one device."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.arguments import AUTO, BUNDLED, RANDOM
from model.build import from_checkpoint, resolve_checkpoint
from model.categories import Categories
from model.faster_rcnn import FasterRCNN
from model.inference.build import serving_model
from model.inference.calibration import calibration_pictures
from model.inference.errors import ServingFormError
from model.inference.memory import is_out_of_memory as is_out_of_memory
from model.inference.memory import trim_host_memory as trim_host_memory
from model.inference.precision import best_batch_size, check_precision
from model.weights import WeightsError, WeightsUnavailableError
from service.cores import usable_cores
from service.settings import Precision, Settings

logger = logging.getLogger(__name__)

MODEL_NAME = "fasterrcnn_resnet50_fpn"
_USUAL_HW = (480, 640)
_GREY = 127
_LARGEST_GPU_BATCH, _LARGEST_CPU_BATCH = 64, 4


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in one picture, best first; boxes xyxy in its pixels."""

    boxes: npt.NDArray[np.float32]  # [D, 4]
    labels: npt.NDArray[np.int64]  # [D]
    scores: npt.NDArray[np.float32]  # [D]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the service tells about the model it serves."""

    name: str
    weights: str
    categories: Categories


class Detector(Protocol):
    """The seam between serving and the model. One detector belongs to one device and is called by one thread."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def best_batch_size(self) -> int:
        """Pictures at a time from which on more do not make it answer more of them a second."""
        ...

    def padded_shape(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """The shape of a batch in which a picture of `size_hw` gets the answer it would get alone."""
        ...

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detect in uint8 `[3, H, W]` pictures of any strides, all of one padded shape. Blocks until it is done."""
        ...


@runtime_checkable
class EarlyUploader(Protocol):
    """A detector that can bring a picture to its device while the device works on others."""

    def upload(self, image: Tensor) -> Tensor:
        """The picture, on its way to the device or there; called by any thread."""
        ...


class DetectorError(Exception):
    """The detector cannot be set up as asked. The message tells what to do."""


# What whoever starts the service can mend; the message tells how.
LOAD_ERRORS = (DetectorError, WeightsError, WeightsUnavailableError)


class ModelDetector:
    """A `FasterRCNN` in its serving form on one device.

    Args:
        model: its parameters are moved to the device.
        info: what to tell about it.
        device: "cpu", "cuda", "cuda:1", ...
        settings: precision and calibration.

    Raises:
        DetectorError: the device cannot compute in that precision.
    """

    def __init__(self, model: FasterRCNN, info: ModelInfo, *, device: str, settings: Settings) -> None:
        self._device = torch.device(device)
        self.info = info
        self.device = device
        try:
            self._model = serving_model(
                model,
                device=self._device,
                precision=settings.precision,
                calibration=partial(calibration_pictures, settings.calibration_images),
            )
        except ServingFormError as error:
            raise DetectorError(str(error)) from error
        self.precision = self._model.precision
        # Of the other priority than those that graphs are captured on, as torch hands out the same ones again.
        self._uploads = torch.cuda.Stream(self._device, priority=-1) if self._device.type == "cuda" else None
        self.best_batch_size = 1

    def padded_shape(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        return self._model.padded_hw(size_hw)

    def measure_batch_size(self) -> None:
        """Find `best_batch_size` on pictures of a usual size; seconds on a CPU."""
        self.best_batch_size = best_batch_size(
            lambda size: self.detect([torch.full((3, *_USUAL_HW), _GREY, dtype=torch.uint8)] * size),
            largest=_LARGEST_GPU_BATCH if self._device.type == "cuda" else _LARGEST_CPU_BATCH,
        )
        self._model.forget()  # what the batches took that are too large
        release_memory(self.device)

    def upload(self, image: Tensor) -> Tensor:
        """See `EarlyUploader`. On a CPU, and where it cannot be, the picture stays where it is."""
        if self._uploads is None:
            return image
        try:
            with torch.cuda.stream(self._uploads):
                return image.pin_memory().to(self._device, non_blocking=True)
        except RuntimeError:  # no memory, or no device any more: its own thread will meet that, and tell
            return image

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        if self._uploads is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._uploads)
        try:
            found = self._model.detect(images)
        except Exception as error:
            if is_out_of_memory(error):
                self._model.forget()
            raise
        return [
            Detections(
                boxes=one["boxes"].cpu().numpy(), labels=one["labels"].cpu().numpy(), scores=one["scores"].cpu().numpy()
            )
            for one in found
        ]


def load_detectors(settings: Settings) -> list[Detector]:
    """One detector per device, each with its own copy of the weights, and each having answered once.

    Raises:
        DetectorError, WeightsError, WeightsUnavailableError: with what to do about it.
    """
    devices = parse_devices(settings.device)
    check_arithmetic(settings.precision, devices)
    if "cpu" in devices:
        torch.set_num_threads(usable_cores())
    checkpoint = resolve_checkpoint(settings.weights, tell=lambda text: logger.warning("%s", text))
    model = from_checkpoint(checkpoint)
    info = ModelInfo(MODEL_NAME, checkpoint.name, checkpoint.categories)
    if AUTO in {settings.precision, settings.max_batch_size}:
        logger.info("measuring what is fastest here, for some seconds; --precision and --max-batch-size do without")
    detectors: list[Detector] = []
    for device in devices:
        own = model if len(devices) == 1 else copy.deepcopy(model)
        detector = ModelDetector(own, info, device=device, settings=settings)
        check_device(detector)
        if settings.max_batch_size == AUTO:
            detector.measure_batch_size()
        detectors.append(detector)
        logger.info(
            "%s weights are on %s in %s, best %d at a time",
            info.weights, device, detector.precision, detector.best_batch_size,
        )  # fmt: skip
    if caveat := weights_caveat(settings.weights, info):
        logger.warning("%s", caveat)
    return detectors


def check_device(detector: Detector) -> None:
    """Have the device answer for one small grey picture; whatever it raises tells that it cannot."""
    detector.detect([torch.full((3, 64, 64), _GREY, dtype=torch.uint8)])


def release_memory(device: str) -> None:
    """Give back what is kept of a device's memory, and of the host's, for later."""
    trim_host_memory()
    if device.startswith("cuda") and torch.cuda.is_available():
        torch.cuda.empty_cache()


def device_name(device: str) -> str:
    """What its maker calls it."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device


def device_memory(device: str) -> dict[str, int]:
    """Bytes of a GPU's memory: those of tensors, those torch holds for them, all there are. Of a CPU, nothing.

    From torch's own books, so that it neither waits for a device that hangs nor fails on one that is lost.
    """
    if torch.device(device).type != "cuda":
        return {}
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "total": torch.cuda.get_device_properties(device).total_memory,
    }


def weights_caveat(asked: str, info: ModelInfo) -> str | None:
    """A warning about the weights that are served, if they are not what a caller expects.

    Args:
        asked: the `--weights` argument.
        info: what is served.
    """
    if info.weights == RANDOM:
        return "the weights are random and untrained: what they find means nothing"
    if asked == AUTO and info.weights == BUNDLED:
        names = ", ".join(info.categories.objects().values())
        return (
            f"the COCO weights could not be fetched: the bundled detector serves and finds only {names}. "
            "For everyday objects restart it with a network, or set FRCNN_WEIGHTS to a file"
        )
    return None


def parse_devices(text: str) -> list[str]:
    """Devices from "auto" (every GPU, or else the CPU), "cpu", "cuda", or a comma-separated list.

    Raises:
        DetectorError: a device that does not exist here, or is named twice.
    """
    gpus = torch.cuda.device_count()
    if text == "auto":
        return [f"cuda:{index}" for index in range(gpus)] or ["cpu"]
    names = ["cuda:0" if name.strip() == "cuda" else name.strip() for name in text.split(",")]
    known = {"cpu", *(f"cuda:{index}" for index in range(gpus))}
    for name in names:
        if name not in known:
            given = "" if gpus else ". A container sees the GPUs that it is given: docker run --gpus all"
            raise DetectorError(f"there is no device {name!r} here; there is {', '.join(sorted(known))}{given}")
    if len(set(names)) < len(names):
        raise DetectorError(f"a device is named twice in {text!r}")
    return names


def check_arithmetic(precision: Precision, devices: Sequence[str]) -> None:
    """Tell that a device cannot do as asked before anything large is fetched or read.

    Raises:
        DetectorError: with what it can do.
    """
    try:
        for device in devices:
            check_precision(precision, torch.device(device))
    except ServingFormError as error:
        raise DetectorError(str(error)) from error
