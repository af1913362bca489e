"""New weights without a new process: read again, made ready beside the old ones, and switched between two batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from service.batching.batcher import Batcher
from service.devices.background import in_background
from service.devices.canary import KnownAnswer
from service.devices.detector import Detector, ModelInfo, known_answer
from service.devices.loading import LOAD_ERRORS
from service.devices.memory import available_memory, is_out_of_memory, release_memory
from service.errors import ReloadError, ReloadMemoryError, ServiceError, UnavailableError
from service.settings import Settings
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# What loading a detector takes of the host's memory at its peak: the file, the model and its serving form, 0.2 GB each,
# and the activations of one picture.
_HOST_BYTES = 1 << 30
_PAUSE = (
    "ask for a reload with a pause, which lets the old model go first and rejects requests until the new one is ready"
)


class Serving(Protocol):
    """What is reloaded: a `Service`."""

    @property
    def serving(self) -> Batcher | None:
        """What the devices serve from, also while none answers; None without a model."""
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
        self._running = False

    async def reload(self, *, pause: bool = False) -> ModelInfo:
        """Read the weights again, and serve with them. The old ones serve until the new ones are ready.

        Args:
            pause: let the old model go before the new one is loaded, for want of memory. If that cannot be loaded then,
                the service ends.

        Returns:
            What is served now.

        Raises:
            UnavailableError: no model is loaded yet, or the service is shutting down.
            ReloadError: the weights cannot be served, or are being read already.
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
        return info

    async def _replaced(self, pause: bool) -> ModelInfo:
        batcher = self._service.serving
        if batcher is None:
            raise UnavailableError("the model is being loaded", retry_after_s=5)
        if self._running:
            raise ReloadError("the weights are being read already")
        self._running = True
        try:
            asked = self._asked(batcher)
            if pause:
                del batcher  # it would keep the old model
                return await self._with_pause(asked)
            return await self._beside(batcher, asked)
        finally:
            self._running = False

    async def _beside(self, batcher: Batcher, asked: Settings) -> ModelInfo:
        left = self._memory()
        if left is not None and left < _HOST_BYTES:
            raise ReloadMemoryError(
                f"a second model needs {_HOST_BYTES >> 20} MiB, and {left >> 20} are left: {_PAUSE}"
            )
        detectors, answers = await self._made(asked)
        if self._service.serving is not batcher:
            raise UnavailableError("the service is shutting down")
        batcher.switch(detectors, answers)
        self._service.announce_model()
        return batcher.info

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
        }
        if len(forms) == 1:
            chosen["precision"], chosen["backend"] = forms.pop()
        return self._settings.model_copy(update=chosen)

    async def _made(self, asked: Settings) -> Made:
        """Detectors that have answered.

        Raises:
            ReloadError, ReloadMemoryError: there are none.
        """
        try:
            return await in_background(partial(_load_and_ask, self._load, asked), name="reload")
        except LOAD_ERRORS as error:
            reason = str(error).splitlines()[0]
        except Exception as error:
            if is_out_of_memory(error):
                for device in asked.device.split(","):
                    release_memory(device)
                raise ReloadMemoryError(f"memory ran out: {_PAUSE}") from None
            logger.exception("the weights cannot be loaded")
            reason = f"{type(error).__name__} while they were made ready; the log has the trace"
        # The answer names the file, and not its folder.
        raise ReloadError(reason.replace(asked.weights, Path(asked.weights).name))


def _load_and_ask(load: Callable[[Settings], Sequence[Detector]], settings: Settings) -> Made:
    detectors = load(settings)
    return Made(detectors, [known_answer(detector) for detector in detectors])
