"""Another model without a new process: made ready beside the one that serves, and switched between two batches.

It is another because the weights are read again, or because int8 has been calibrated, in whose place another precision
answered until then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from service.batching.batcher import Batcher
from service.devices.background import in_background
from service.devices.canary import KnownAnswer
from service.devices.detector import Detector, ModelInfo, is_interim, known_answer
from service.devices.gpus import DetectorError
from service.devices.loading import LOAD_ERRORS
from service.devices.memory import available_memory, is_out_of_memory, release_memory
from service.errors import ReloadError, ReloadMemoryError, ServiceError, UnavailableError
from service.settings import Settings
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# What loading a detector takes of the host's memory at its peak: the file, the model and its serving form, 0.2 GB each,
# and the activations of one picture.
_HOST_BYTES = 1 << 30
_CALIBRATION_BYTES = 3 << 30  # the same with NNCF and all activations of a picture; 2.7 GiB were measured
_PAUSE = (
    "ask for a reload with a pause, which lets the old model go first and rejects requests until the new one is ready"
)


class Serving(Protocol):
    """What is reloaded: a `Service`."""

    @property
    def serving(self) -> Batcher | None:
        """What the devices serve from, also while none answers; None without a model."""
        ...

    @property
    def detectors(self) -> list[Detector]:
        """One per device; none without a model."""
        ...

    @property
    def max_batch_size(self) -> int | None:
        """Most pictures in a batch; None without a model."""
        ...

    def announce_model(self) -> None:
        """Tell what is served now: the detectors have been replaced."""
        ...

    async def take_down(self) -> None:
        """Answer what is accepted, reject what comes, and let the model go."""
        ...

    def put_up(self, detectors: Sequence[Detector]) -> None:
        """Serve with these."""
        ...

    def lose_model(self, reason: str) -> None:
        """Fail for good: the old model is gone, and there is no new one."""
        ...


class Made(NamedTuple):
    """Detectors, one per device, and what each answers to the known picture."""

    detectors: Sequence[Detector]
    answers: Sequence[KnownAnswer]


class Reloader:
    """Replaces the model of a service; one replacement at a time.

    Args:
        service: what serves.
        load: makes the detectors; blocks.
        settings: the service's.
        metrics: counts reloads by their result.
        memory: tells how many bytes of the host's memory are left.

    Attributes:
        caveat: what an operator should know of int8: it is being calibrated, or why it is not used. None for nothing.
    """

    def __init__(
        self,
        service: Serving,
        *,
        load: Callable[[Settings], Sequence[Detector]],
        settings: Settings,
        metrics: Metrics,
        memory: Callable[[], int | None] = available_memory,
    ) -> None:
        self._service = service
        self._load = load
        self._settings = settings
        self._count = metrics.reloads
        self._memory = memory
        self._under_way: str | None = None  # what a caller hears who wants a reload meanwhile
        self._awaits_int8 = False
        self._calibrating: asyncio.Task[None] | None = None
        self.caveat: str | None = None

    def begin(self, detectors: Sequence[Detector]) -> None:
        """Note what was loaded at first. If it stands in for int8, calibrate that in the background from now on."""
        self._awaits_int8 = any(is_interim(detector) for detector in detectors)
        self._calibrate_soon()

    def stop(self) -> None:
        """Replace the model no more. A thread that makes another one ends on its own."""
        if self._calibrating is not None:
            self._calibrating.cancel()

    async def reload(self, *, pause: bool = False) -> ModelInfo:
        """Read the weights again, and serve with them. The old ones serve until the new ones are ready.

        Args:
            pause: let the old model go before the new one is loaded, for want of memory. If that cannot be loaded then,
                the service ends.

        Returns:
            What is served now.

        Raises:
            UnavailableError: no model is loaded yet, or the service is shutting down.
            ReloadError: the weights cannot be served, are being read already, or int8 is being calibrated.
            ReloadMemoryError: there is not enough memory for a second model.
        """
        started = time.monotonic()
        try:
            info = await self._replaced(pause)
        except ServiceError as error:
            self._count.labels("no-memory" if isinstance(error, ReloadMemoryError) else "failed").inc()
            logger.error("the weights are not replaced: %s", error.detail)  # noqa: TRY400 - the detail is the reason
            raise
        self._count.labels("ok").inc()
        logger.info("%s %s serves after %.1f s", info.weights, info.version, time.monotonic() - started)
        self._calibrate_soon()  # on the new weights, if the old ones were not
        return info

    async def _replaced(self, pause: bool) -> ModelInfo:
        batcher = self._service.serving
        if batcher is None:
            raise UnavailableError("the model is being loaded", retry_after_s=5)
        if self._under_way is not None:
            raise ReloadError(self._under_way)
        self._under_way = "the weights are being read already"
        try:
            asked = self._asked(batcher)
            if pause:
                del batcher  # it would keep the old model
                return await self._with_pause(asked)
            return await self._beside(batcher, asked)
        finally:
            self._under_way = None

    async def _beside(self, batcher: Batcher, asked: Settings) -> ModelInfo:
        try:
            self._check_memory("a second model", _HOST_BYTES)
            made = await self._made(asked)
        except ReloadMemoryError as error:
            raise ReloadMemoryError(f"{error.detail}: {_PAUSE}") from None
        self._switch(batcher, made)
        return batcher.info

    def _check_memory(self, what: str, needed: int) -> None:
        left = self._memory()
        if left is not None and left < needed:
            raise ReloadMemoryError(f"{what} needs {needed >> 20} MiB, and {left >> 20} are left")

    def _switch(self, batcher: Batcher, made: Made) -> None:
        if self._service.serving is not batcher:
            raise UnavailableError("the service is shutting down")
        batcher.switch(made.detectors, made.answers)
        self._service.announce_model()

    async def _with_pause(self, asked: Settings) -> ModelInfo:
        await self._service.take_down()
        try:
            detectors, _ = await self._made(asked)
        except ServiceError as error:
            self._service.lose_model(error.detail)
            raise
        self._service.put_up(detectors)
        return detectors[0].info

    def _asked(self, batcher: Batcher) -> Settings:
        """The settings, with what was chosen by measurement: a measurement beside requests would mislead."""
        forms = {(detector.precision, detector.backend) for detector in batcher.detectors}
        chosen: dict[str, object] = {
            "device": ",".join(detector.device for detector in batcher.detectors),
            "max_batch_size": batcher.max_batch_size,
            "calibrate_first": True,  # the old model answers meanwhile
        }
        if len(forms) == 1:
            chosen["precision"], chosen["backend"] = forms.pop()
        return self._settings.model_copy(update=chosen)

    def for_device(self, device: str) -> Detector:
        """A detector like the one that a device has lost: answers must not change. Blocks.

        Raises:
            DetectorError, WeightsError, WeightsUnavailableError: there is none.
        """
        lost = next(detector for detector in self._service.detectors if detector.device == device)
        asked = self._same_weights(lost, {"precision": lost.precision, "backend": lost.backend})
        found = next(detector for detector in self._load(asked) if detector.device == device)
        _check_version(found, lost)
        return found

    def _same_weights(self, detector: Detector, form: dict[str, object]) -> Settings:
        """The settings for one more detector of the same device and weights."""
        asked = form | {
            "device": detector.device,
            "max_batch_size": self._service.max_batch_size,
            "calibrate_first": True,
        }
        if self._settings.weights == "auto":
            asked["weights"] = detector.info.weights
        return self._settings.model_copy(update=asked)

    def _calibrate_soon(self) -> None:
        """Begin to calibrate int8 in the background, if it is waited for."""
        batcher = self._service.serving
        if batcher is None or not self._awaits_int8:
            return
        self._under_way = "int8 is being calibrated: reload the weights when it is done"
        self.caveat = f"int8 is being calibrated; {batcher.detectors[0].precision} answers meanwhile"
        logger.warning("%s", self.caveat)
        self._calibrating = asyncio.create_task(self._calibrate(batcher), name="calibrate")

    async def _calibrate(self, batcher: Batcher) -> None:
        """Serve in int8 once it is calibrated. If it cannot be, what serves goes on, and `caveat` says why."""
        started, interim = time.monotonic(), batcher.detectors[0]
        try:
            self._check_memory("calibration", _CALIBRATION_BYTES)
            made = await self._made(self._same_weights(interim, {}), name="calibrate")
            _check_version(made.detectors[0], interim)
            if made.detectors[0].precision == "int8":
                self._switch(batcher, made)
        except UnavailableError:
            return  # the service is shutting down
        except (ServiceError, DetectorError) as error:
            self.caveat = f"int8 is not used, and {interim.precision} answers: {error}"
            logger.error("%s", self.caveat)  # noqa: TRY400 - the error is the reason
            return
        finally:
            self._under_way = None
        self._awaits_int8, self.caveat = False, None
        logger.info("%s serves after %.1f s of calibration", batcher.detectors[0].precision, time.monotonic() - started)

    async def _made(self, asked: Settings, *, name: str = "reload") -> Made:
        """Detectors that have answered.

        Raises:
            ReloadError, ReloadMemoryError: there are none.
        """
        try:
            return await in_background(partial(_load_and_ask, self._load, asked), name=name)
        except LOAD_ERRORS as error:
            reason = str(error).splitlines()[0]
        except Exception as error:
            if is_out_of_memory(error):
                for device in asked.device.split(","):
                    release_memory(device)
                raise ReloadMemoryError("memory ran out") from None
            logger.exception("the weights cannot be loaded")
            reason = f"{type(error).__name__} while they were made ready; the log has the trace"
        for path in (asked.weights, asked.calibration_images):
            if path is not None:
                reason = reason.replace(str(path), Path(path).name)  # callers hear of a file, and not of its folder
        raise ReloadError(reason)


def _load_and_ask(load: Callable[[Settings], Sequence[Detector]], settings: Settings) -> Made:
    detectors = load(settings)
    return Made(detectors, [known_answer(detector) for detector in detectors])


def _check_version(found: Detector, before: Detector) -> None:
    """Raises DetectorError: these are other weights."""
    if found.info.version != before.info.version:
        raise DetectorError("the file of weights has changed since it was read; reload it, by SIGHUP for one")
