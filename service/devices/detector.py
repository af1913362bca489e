"""The model as the service sees it: pictures in, arrays out, on one device."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.architectures import architecture_named
from model.build import from_checkpoint, resolve_checkpoint
from model.faster_rcnn import FasterRCNN
from model.inference.build import serving_model
from model.inference.calibration import calibration_pictures
from model.inference.errors import ServingFormError
from model.inference.memory import is_out_of_memory as is_out_of_memory
from model.inference.memory import trim_host_memory as trim_host_memory
from model.inference.precision import best_batch_size, check_precision
from model.inference.serving import Pending
from model.structures import Detection
from model.weights.categories import Categories
from model.weights.checkpoints import WeightsError, WeightsUnavailableError
from model.weights.names import AUTO, BUNDLED, RANDOM
from service.devices.canary import KnownAnswer, ask
from service.devices.cores import compute_threads
from service.devices.gpus import DetectorError, device_caveat, parse_devices
from service.devices.staging import Uploads, cuda_uploads, page_locked
from service.images.pictures import Pixels
from service.settings import Precision, Settings

logger = logging.getLogger(__name__)

_USUAL_HW = (480, 640)
# 4:3, 3:2 and 16:9, each upright too, the most usual first: what cameras and phones make.
_USUAL_SIZES = (_USUAL_HW, (640, 480), (2000, 3000), (1080, 1920), (3000, 2000), (1920, 1080))
_GREY = 127
_LARGEST_CPU_BATCH, _LARGEST_GPU_BATCH = 4, 32
# Of pictures that are decoded and not yet answered: 280 of 640x480. Those beyond are copied from pageable memory.
_MOST_STAGED_BYTES = 256 << 20


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
    def best_batch_size(self) -> int:
        """Pictures at a time from which on more do not make it answer more of them a second."""
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
        """Memory to decode a picture into: see `service.images.Allocate`. Called by any thread."""
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


def known_answer(detector: Detector) -> KnownAnswer:
    """What the detector said of the known picture when it was loaded; asks it if that has not been done. May block."""
    known = detector.known_answer if isinstance(detector, Known) else None
    return known or ask(detector)


# Errors that the operator can fix; the message says how.
LOAD_ERRORS = (DetectorError, WeightsError, WeightsUnavailableError)


class ModelDetector:
    """A `FasterRCNN` in its serving form on one device.

    Args:
        model: its parameters are moved to the device.
        info: its name, weights and classes.
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
        self.best_batch_size = 1
        self.known_answer: KnownAnswer | None = None  # from when it was loaded

    def padded_shape(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        return self._model.padded_hw(size_hw)

    def measure_batch_size(self) -> None:
        """Find `best_batch_size` on pictures of a usual size; seconds on a CPU."""
        self.best_batch_size = best_batch_size(
            lambda size: self.detect([_grey(_USUAL_HW)] * size), largest=_LARGEST_CPU_BATCH
        )
        release_memory(self.device)

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        return [_as_arrays(found) for found in self._model.detect(images)]

    def raw_scores(self, image: Tensor) -> Tensor:
        return self._model.raw_scores(image)


class GPUDetector(ModelDetector):
    """A `Pipelined` detector on a GPU. The arguments are those of `ModelDetector`."""

    def __init__(self, model: FasterRCNN, info: ModelInfo, *, device: str, settings: Settings) -> None:
        super().__init__(model, info, device=device, settings=settings)
        self._upload_stream, self._uploads = _uploads_of(self._device)
        self._staging = page_locked(min(3 * settings.queue_capacity_pixels, _MOST_STAGED_BYTES))

    def measure_batch_size(self) -> None:
        """Find `best_batch_size` on pictures of a usual size; a second or two."""

        def run(size: int) -> None:
            self._model.capture_for(_USUAL_HW, size)
            self.detect([_grey(_USUAL_HW)] * size)

        self.best_batch_size = best_batch_size(run, smallest=4, largest=_LARGEST_GPU_BATCH, patience=2)

    def get_ready(self, max_batch_size: int) -> None:
        """Prepare for the most usual pictures now, and list what `prepare` does later."""
        sizes = [1 << power for power in range(max_batch_size.bit_length())]
        for size in sizes:
            self._model.capture_for(_USUAL_HW, size)
        self._model.capture_when_idle(_USUAL_SIZES, sizes)

    def prepare(self) -> bool:
        return self._model.capture_next()

    def allocate(self, shape: tuple[int, int, int]) -> Pixels:
        return self._staging.allocate(shape)

    def upload(self, image: Tensor) -> Tensor:
        """See `Pipelined`. Where the picture cannot be sent, it stays where it is."""
        try:
            return self._uploads.send(image)
        except RuntimeError:  # no memory, or no device any more: its own thread will find and report that
            return image

    def launch(self, images: Sequence[Tensor]) -> Launched:
        torch.cuda.current_stream(self._device).wait_stream(self._upload_stream)
        try:
            return _ArraysLaunched(self._model.launch(images))
        except Exception as error:
            if is_out_of_memory(error):
                self._model.forget()
            raise

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        launched = self.launch(images)
        launched.wait()
        return launched.fetch()


@cache
def _uploads_of(device: torch.device) -> tuple[torch.cuda.Stream, Uploads]:
    """The way of pictures to a device. Its detectors share it: one may get what was sent before it came."""
    # Of the other priority than the streams that graphs are captured on, as torch hands out the same ones again.
    stream = torch.cuda.Stream(device, priority=-1)
    return stream, cuda_uploads(device, stream)


class _ArraysLaunched:
    """`Launched`, of a batch whose detections are tensors."""

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        self.wait = pending.wait

    def fetch(self) -> list[Detections]:
        return [_as_arrays(found) for found in self._pending.fetch()]


def _as_arrays(found: Detection) -> Detections:
    boxes, labels, scores = (tensor.cpu().numpy() for tensor in (found["boxes"], found["labels"], found["scores"]))
    return Detections(boxes=boxes, labels=labels, scores=scores)


def _grey(size_hw: tuple[int, int]) -> Tensor:
    return torch.full((3, *size_hw), _GREY, dtype=torch.uint8, device="cpu")


def load_detectors(settings: Settings) -> list[Detector]:
    """One detector per device, each with its own copy of the weights, and each having answered once.

    Raises:
        DetectorError, WeightsError, WeightsUnavailableError: with what to do about it.
    """
    devices = parse_devices(settings.device)
    check_arithmetic(settings.precision, devices)
    torch.set_num_threads(compute_threads(devices))
    wanted = architecture_named(settings.model)
    checkpoint = resolve_checkpoint(settings.weights, wanted, tell=lambda text: logger.warning("%s", text))
    checkpoint = checkpoint.named(settings.class_names)
    model = from_checkpoint(checkpoint)
    info = ModelInfo(
        checkpoint.architecture.name,
        checkpoint.name,
        checkpoint.categories,
        iou_threshold=model.roi_heads.nms_thresh,
        version=checkpoint.version,
    )
    if AUTO in {settings.precision, settings.max_batch_size}:
        logger.info("measuring what is fastest here, for some seconds; --precision and --max-batch-size do without")
    detectors: list[Detector] = []
    for device in devices:
        own = model if len(devices) == 1 else copy.deepcopy(model)
        kind = GPUDetector if device.startswith("cuda") else ModelDetector
        detector = kind(own, info, device=device, settings=settings)
        if settings.max_batch_size == AUTO:
            detector.measure_batch_size()
        if isinstance(detector, GPUDetector):
            detector.get_ready(min(batch_size(settings, [detector]), _LARGEST_GPU_BATCH))
        detector.known_answer = ask(detector)  # by the graphs that will be asked again
        detectors.append(detector)
        logger.info(
            "%s weights, version %s, are on %s in %s, best %d at a time",
            info.weights, info.version, device, detector.precision, detector.best_batch_size,
        )  # fmt: skip
    # The log has what `auto` fell back to, with the reason.
    about_weights = None if settings.weights == AUTO else weights_caveat(settings.weights, info)
    for caveat in (about_weights, device_caveat(settings.device, devices)):
        if caveat:
            logger.warning("%s", caveat)
    return detectors


def batch_size(settings: Settings, detectors: Sequence[Detector]) -> int:
    """Most pictures in one batch, of all the detectors."""
    if settings.max_batch_size != "auto":
        return settings.max_batch_size
    return min(detector.best_batch_size for detector in detectors)


def release_memory(device: str) -> None:
    """Give back what is kept of a device's memory, and of the host's, for later."""
    trim_host_memory()
    if device.startswith("cuda") and torch.cuda.is_available():
        torch.cuda.empty_cache()


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
