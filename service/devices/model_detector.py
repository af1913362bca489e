"""The detectors of the service: the model in its serving form, on a CPU or on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import torch
from torch import Tensor

from model.faster_rcnn import FasterRCNN
from model.inference.build import serving_model
from model.inference.calibration import calibration_pictures
from model.inference.errors import QuantisationError, ServingFormError, UncalibratedError
from model.inference.precision import AUTO, best_batch_size
from model.inference.serving import Pending
from model.structures import Detection
from service.devices.canary import KnownAnswer
from service.devices.detector import Detections, Launched, ModelInfo
from service.devices.gpus import DetectorError
from service.devices.memory import is_out_of_memory, release_memory
from service.devices.staging import Uploads, cuda_uploads, page_locked
from service.images.pictures import Pixels
from service.settings import Settings

_USUAL_HW = (480, 640)
# 4:3, 3:2 and 16:9, each upright too, the most usual first: what cameras and phones make.
_USUAL_SIZES = (_USUAL_HW, (640, 480), (2000, 3000), (1080, 1920), (3000, 2000), (1920, 1080))
_GREY = 127
_LARGEST_CPU_BATCH, LARGEST_GPU_BATCH = 4, 32
# Times as many pictures a second that pay for a batch of twice as many. On a CPU that batch takes nearly twice as long,
# every caller waits for it, and the measurement is as noisy as what else runs there.
_CPU_GAIN, _GPU_GAIN = 1.25, 1.05
# Of pictures that are decoded and not yet answered: 280 of 640x480. Those beyond are copied from pageable memory.
_MOST_STAGED_BYTES = 256 << 20


class ModelDetector:
    """A `FasterRCNN` in its serving form on one device.

    Args:
        model: its parameters are moved to the device.
        info: its name, weights and classes.
        device: "cpu", "cuda", "cuda:1", ...
        settings: precision, backend and calibration. Unless that is to be first, another precision stands in for int8
            where it is not calibrated yet.

    Raises:
        DetectorError: the device cannot compute in that precision.
    """

    def __init__(self, model: FasterRCNN, info: ModelInfo, *, device: str, settings: Settings) -> None:
        self._device = torch.device(device)
        self.info = info
        self.device = device
        folder = settings.calibration_images
        form = partial(serving_model, model, device=self._device, backend=settings.backend)
        self.is_interim = False
        try:
            try:
                self._model = form(
                    precision=settings.precision,
                    calibration=None if folder is None else partial(calibration_pictures, folder),
                    calibrate=settings.calibrate_first,
                )
            except (UncalibratedError, QuantisationError):
                if settings.calibrate_first:
                    raise
                self._model, self.is_interim = form(precision=AUTO), True
        except ServingFormError as error:
            raise DetectorError(str(error)) from error
        self.precision, self.backend = self._model.precision, self._model.backend
        self.best_batch_size = 1
        self.known_answer: KnownAnswer | None = None  # from when it was loaded

    def padded_shape(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        return self._model.padded_hw(size_hw)

    def measure_batch_size(self) -> None:
        """Find `best_batch_size` for pictures of a usual size, by the network alone; seconds on a CPU."""
        height_width = self.padded_shape(_USUAL_HW)
        self.best_batch_size = best_batch_size(
            lambda size: self._model.run_network(torch.zeros(size, 3, *height_width, device=self._device)),
            largest=_LARGEST_CPU_BATCH,
            gain=_CPU_GAIN,
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

        self.best_batch_size = best_batch_size(run, smallest=4, largest=LARGEST_GPU_BATCH, gain=_GPU_GAIN, patience=2)

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
