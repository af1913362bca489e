"""The model as the service sees it: pictures in, arrays out, on one device."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.build import AUTO, RANDOM, from_checkpoint, resolve_checkpoint
from model.categories import Categories
from model.faster_rcnn import FasterRCNN
from model.roi_pool import MultiScaleRoIAlign
from model.weights import BUNDLED, WeightsError, WeightsUnavailableError
from service.settings import Precision, Settings

logger = logging.getLogger(__name__)

MODEL_NAME = "fasterrcnn_resnet50_fpn"
# The strides of the pyramid levels that RoIs are pooled from.
_POOLED_STRIDES = (4, 8, 16, 32)
# How the CPU's allocator, the CUDA driver, cuDNN and cuBLAS say it where torch raises a plain RuntimeError.
_MEMORY_WORDS = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


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

    def padded_shape(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """The shape of a batch in which a picture of `size_hw` gets the answer it would get alone."""
        ...

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detect in uint8 `[3, H, W]` pictures, all of one padded shape. Blocks until the device is done."""
        ...


class DetectorError(Exception):
    """The detector cannot be set up as asked. The message tells what to do."""


# What whoever starts the service can mend; the message tells how.
LOAD_ERRORS = (DetectorError, WeightsError, WeightsUnavailableError)


class TorchDetector:
    """A `FasterRCNN` on one torch device.

    Args:
        model: its parameters are moved to the device.
        info: what to tell about it.
        device: "cpu", "cuda", "cuda:1", ...
        precision: of the network; see `Settings`.

    Raises:
        DetectorError: the device cannot compute in that precision.
    """

    def __init__(self, model: FasterRCNN, info: ModelInfo, *, device: str, precision: Precision) -> None:
        self._device = torch.device(device)
        self.info = info
        self.device = device
        self.precision = _choose_precision(precision, self._device)
        self._model = model.eval().to(self._device)
        # The pooling scales must not depend on which picture happens to come first.
        pool = self._model.roi_heads.box_roi_pool
        assert isinstance(pool, MultiScaleRoIAlign)
        pool.pin_scales(_POOLED_STRIDES)
        if self._device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.precision == "tf32"

    def padded_shape(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        return self._model.transform.padded_hw(size_hw)

    @torch.inference_mode()
    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        floats = [image.to(self._device, non_blocking=True).to(torch.float32).div_(255) for image in images]
        with self._autocast():
            found = self._model.detect(floats)
        return [
            Detections(
                boxes=one["boxes"].cpu().numpy(), labels=one["labels"].cpu().numpy(), scores=one["scores"].cpu().numpy()
            )
            for one in found
        ]

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        dtype = _AUTOCAST.get(self.precision)
        return contextlib.nullcontext() if dtype is None else torch.autocast(self._device.type, dtype)


def load_detectors(settings: Settings) -> list[Detector]:
    """One detector per device, each with its own copy of the weights, and each having answered once.

    Raises:
        DetectorError, WeightsError, WeightsUnavailableError: with what to do about it.
    """
    devices = parse_devices(settings.device)
    for device in devices:
        _choose_precision(settings.precision, torch.device(device))
    checkpoint = resolve_checkpoint(settings.weights, tell=lambda text: logger.warning("%s", text))
    model = from_checkpoint(checkpoint)
    info = ModelInfo(MODEL_NAME, checkpoint.name, checkpoint.categories)
    detectors: list[Detector] = []
    for device in devices:
        own = model if len(devices) == 1 else copy.deepcopy(model)
        detector = TorchDetector(own, info, device=device, precision=settings.precision)
        check_device(detector)
        detectors.append(detector)
        logger.info("%s weights are on %s in %s", info.weights, device, detector.precision)
    if caveat := weights_caveat(settings.weights, info):
        logger.warning("%s", caveat)
    return detectors


def check_device(detector: Detector) -> None:
    """Have the device answer for one small grey picture; whatever it raises tells that it cannot."""
    detector.detect([torch.full((3, 64, 64), 127, dtype=torch.uint8)])


def is_out_of_memory(error: Exception) -> bool:
    """Whether it says that a device's memory, or the host's, does not hold the batch."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error) for words in _MEMORY_WORDS if isinstance(error, RuntimeError)
    )


def release_memory(device: str) -> None:
    """Give back what is kept of a device's memory, and of the host's, for later."""
    trim_host_memory()
    if device.startswith("cuda") and torch.cuda.is_available():
        torch.cuda.empty_cache()


def trim_host_memory() -> None:
    """Return to the system what the C library keeps of freed memory, where it can be told to.

    glibc keeps the holes that large pictures leave, so that a process looks as if it leaked.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


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
    """What to say loudly of the weights that are served, if they are not what a caller would expect.

    Args:
        asked: the `--weights` argument.
        info: what is served.
    """
    if info.weights == RANDOM:
        return "UNTRAINED, RANDOM WEIGHTS are served: what they find means nothing"
    if asked == AUTO and info.weights == BUNDLED:
        names = ", ".join(info.categories.objects().values())
        return f"COCO_V1 COULD NOT BE HAD: the bundled detector is served, which finds only {names}"
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
            raise DetectorError(f"there is no device {name!r} here; there is {', '.join(sorted(known))}")
    if len(set(names)) < len(names):
        raise DetectorError(f"a device is named twice in {text!r}")
    return names


def _choose_precision(wanted: Precision, device: torch.device) -> str:
    if wanted == "auto":
        return "fp32"
    if wanted == "int8":
        raise DetectorError("int8 is not built yet; choose fp32, bf16, or on a GPU tf32 or fp16")
    if wanted in {"tf32", "fp16"} and device.type != "cuda":
        raise DetectorError(f"{wanted} needs a GPU; choose fp32 or bf16 on {device}")
    return wanted
