"""The service: its state from loading to stopped, and what the routes work with."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

from opentelemetry.trace import TracerProvider

from service.batching.admission import Admission
from service.batching.batcher import Batcher, BatcherLimits
from service.batching.decode_threads import Continuation, DecodeThreads
from service.batching.fairness import Caller
from service.batching.thread_work import run_in_threads
from service.devices.background import in_background
from service.devices.cores import usable_cores
from service.devices.detector import Detector, ModelInfo
from service.devices.gpus import device_caveat, device_memory, device_name
from service.devices.loading import LOAD_ERRORS, batch_size, weights_caveat
from service.devices.memory import release_memory, trim_host_memory
from service.devices.readings import GPUReadings
from service.errors import UnavailableError
from service.reloading import Reloader
from service.settings import Settings
from service.state import Condition, State
from service.telemetry.metrics import Metrics
from service.telemetry.stages import Stages

logger = logging.getLogger(__name__)

T = TypeVar("T")
LoadDetectors = Callable[[Settings], Sequence[Detector]]

_RETRY_WHILE_LOADING_S = 5
# The default of `memory_budget_bytes`: on 2 cores 1 GiB, with which the process stays below 3 GB on a CPU.
_FIXED_MEMORY, _MEMORY_OF_THREAD = 768 << 20, 128 << 20
# What is bounded to about a second of a core takes longer where threads share it: up to 20 times under attack.
_STUCK_S = 60.0


class Service:
    """What the routes work with. Its state changes on the event loop only.

    Args:
        settings: the settings.
        load: makes the detectors; runs in a thread, so that the service can say that it is loading.
        on_fatal_error: called once when the service will never answer again, and its process should end.
        tracer_provider: where the spans of the stages go; nowhere, by default.
    """

    def __init__(
        self,
        settings: Settings,
        load: LoadDetectors,
        on_fatal_error: Callable[[], None] | None = None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        threads = settings.decode_threads or usable_cores()
        self.settings = settings
        self.metrics = Metrics()
        self.metrics.capacity.set(settings.queue_capacity)
        self.admission = Admission(
            capacity=settings.queue_capacity,
            pixel_capacity=settings.queue_capacity_pixels,
            byte_capacity=settings.queue_capacity_bytes,
            memory_capacity=settings.memory_budget_bytes or _FIXED_MEMORY + threads * _MEMORY_OF_THREAD,
            devices=lambda: 0 if self._batcher is None else self._batcher.answering,
            metrics=self.metrics,
        )
        self.stages = Stages(self.metrics, tracer_provider)
        self.version = service_version()
        self.fatal_error: str | None = None  # why the process should end
        self._state = State.LOADING
        self._load: LoadDetectors = partial(_loaded, load)
        self._on_fatal_error = on_fatal_error
        self._loading: asyncio.Task[None] | None = None
        self._fatal_detail = ""  # the same for callers
        self._batcher: Batcher | None = None
        self._device_caveat: str | None = None
        self._started = time.monotonic()
        self.metrics.ready.set_function(lambda: self.condition.status == "ok")
        self._decoders = DecodeThreads(threads)
        self.metrics.watch_batch_caps(lambda: self.batch_caps)
        self.metrics.watch_memory(lambda: {d.device: device_memory(d.device) for d in self.detectors})
        self.readings = GPUReadings()
        self.scrape = asyncio.Lock()  # one at a time
        self.metrics.watch_readings(lambda: self.readings.latest)
        self._reloader = Reloader(self, load=self._load, settings=settings, metrics=self.metrics)

    async def start(self) -> None:
        """Begin to load, in a thread that does not keep the process from ending. Returns at once."""
        self._loading = asyncio.create_task(self._load_model(), name="load")
        # Read, or asyncio logs the exception where nothing waits for the load.
        self._loading.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def until_loaded(self) -> None:
        """Wait for the model.

        Raises:
            Exception: why it cannot be loaded.
        """
        assert self._loading is not None, "it has been started"
        await asyncio.shield(self._loading)

    async def stop(self) -> None:
        """Reject the requests that still wait, and end the devices and the decoding threads."""
        self.stop_accepting()
        self._reloader.stop()
        if self._batcher is not None:
            await self._batcher.stop()
        self._decoders.shutdown(wait=False, cancel=True)

    def start_draining(self) -> None:
        """Announce the end in `condition`. Requests are still answered."""
        self._move_to(State.DRAINING)

    def stop_accepting(self) -> None:
        """Reject new requests. Accepted ones are still answered."""
        self._move_to(State.STOPPED)

    def _move_to(self, state: State) -> None:
        self._state = self._state.then(state)

    @property
    def condition(self) -> Condition:
        if self._state in (State.DRAINING, State.STOPPED):
            return Condition("draining", "the service is shutting down; what was accepted is being answered")
        return self._ability

    @property
    def _ability(self) -> Condition:
        """The condition without regard to draining."""
        if self.fatal_error is not None:
            return Condition("failing", self._fatal_detail)
        if self._batcher is None:
            return Condition("loading", "the model is being loaded")
        if self._batcher.failure is not None:
            return Condition("failing", f"no device answers: {self._batcher.failure}")
        if stuck := self._decoders.overrunning(_STUCK_S):
            detail = f"stuck decodes: threads that have been at one image for over {_STUCK_S:g} s: {stuck}"
            return Condition("failing" if self._decoders.all_overrun(_STUCK_S) else "ok", detail)
        if self._batcher.failures:
            return Condition("ok", f"some devices do not answer: {'; '.join(self._batcher.failures)}")
        if caps := self._batcher.batch_caps:
            told = "; ".join(f"{device}: {cap}" for device, cap in caps.items())
            return Condition("ok", f"memory ran out, so batches are smaller for now: {told}")
        about_weights = weights_caveat(self.settings.weights, self._batcher.info)
        caveats = (self._reloader.caveat, about_weights, self._device_caveat)
        told = "; ".join(caveat for caveat in caveats if caveat)
        return Condition("ok", told or "the model is loaded and its device answers")

    @property
    def batcher(self) -> Batcher:
        """The way to the devices.

        Raises:
            UnavailableError: loading, draining or failing.
        """
        batcher = self._batcher
        stopped = self._state is State.STOPPED
        if stopped or batcher is None or batcher.failure is not None:
            condition = self.condition if stopped else self._ability
            raise UnavailableError(condition.detail, retry_after_s=_RETRY_WHILE_LOADING_S)
        return batcher

    @property
    def detectors(self) -> list[Detector]:
        """One per device; none until they are loaded."""
        return [] if self._batcher is None else self._batcher.detectors

    @property
    def info(self) -> ModelInfo | None:
        """The model served; None until it is loaded."""
        return None if self._batcher is None else self._batcher.info

    @property
    def images_in_flight(self) -> int:
        return self.admission.images.used

    @property
    def max_batch_size(self) -> int | None:
        return None if self._batcher is None else self._batcher.max_batch_size

    @property
    def batch_caps(self) -> dict[str, int]:
        """The bound on a batch, of each device that has run out of memory recently."""
        return {} if self._batcher is None else self._batcher.batch_caps

    @property
    def busy(self) -> bool:
        """Whether a device's thread runs a batch, or hangs in one."""
        return self._batcher is not None and self._batcher.busy

    def overruns(self, seconds: float) -> bool:
        """Whether a decoding thread has been at one piece of work for longer than this."""
        return self._decoders.overrunning(seconds) > 0

    @property
    def loading(self) -> bool:
        """Whether the model is not loaded yet; also true once the event loop has ended before it was."""
        return self._loading is not None and (not self._loading.done() or self._loading.cancelled())

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._started

    @property
    def lost_device(self) -> bool:
        """Whether the service has ended because no device answers any more."""
        return self.fatal_error is not None and self._batcher is not None

    def in_thread(
        self,
        work: Callable[[], T | Continuation],
        *,
        on_end: Callable[[], None],
        caller: Caller,
        cost: int,
    ) -> asyncio.Future[T]:
        """See `run_in_threads`."""
        return run_in_threads(self._decoders, work, on_end=on_end, caller=caller, cost=cost)

    async def _load_model(self) -> None:
        try:
            detectors = await in_background(partial(self._load, self.settings), name="load")
            self.put_up(detectors)
        except Exception as error:
            if isinstance(error, LOAD_ERRORS):
                logger.error("the model cannot be loaded: %s", str(error).splitlines()[0])  # noqa: TRY400 - the user's to mend
            else:
                logger.exception("the model cannot be loaded")
            self._fail(str(error), f"the model cannot be loaded: {type(error).__name__}")  # a message may hold a path
            raise
        if self._state is State.STOPPED:
            return
        self._move_to(State.READY)
        logger.info("ready: %s on %s", detectors[0].info.weights, ", ".join(d.device for d in detectors))
        self._reloader.begin(detectors)

    def _fail(self, reason: str, detail: str) -> None:
        """Ask for the end of the process, once: the service will not answer again."""
        if self.fatal_error is None:
            self.fatal_error, self._fatal_detail = reason, detail
            self._move_to(State.FAILING)
            if self._on_fatal_error is not None:
                self._on_fatal_error()

    async def reload(self, *, pause: bool = False) -> ModelInfo:
        """Serve with the weights as they are now: see `Reloader.reload`."""
        return await self._reloader.reload(pause=pause)

    @property
    def serving(self) -> Batcher | None:
        """What the devices serve from, also while none answers; None without a model, and after the end."""
        return None if self._state is State.STOPPED else self._batcher

    async def take_down(self) -> None:
        """Answer what is accepted, reject what comes, and let the model go."""
        batcher, self._batcher = self._batcher, None
        assert batcher is not None, "there is a model to let go"
        images = self.admission.images
        while images.used:
            with images.release() as released:
                if images.used:
                    await released
        await batcher.stop()
        devices = [detector.device for detector in batcher.detectors]
        del batcher
        gc.unfreeze()
        gc.collect()
        for device in devices:
            release_memory(device)

    def lose_model(self, reason: str) -> None:
        """Fail for good: the old model is gone, and there is no new one."""
        self._fail(reason, reason)

    def put_up(self, detectors: Sequence[Detector]) -> None:
        """Serve with these detectors, unless the service has stopped."""
        if self._state is State.STOPPED:
            return
        settings = self.settings
        self._batcher = Batcher(
            detectors,
            limits=BatcherLimits(
                max_batch_size=batch_size(settings, detectors),
                max_queue_delay_s=settings.max_queue_delay_ms / 1000,
                priority_head_start_s=settings.priority_head_start_s,
                hang_timeout_s=settings.hang_timeout_s,
                canary_interval_s=settings.canary_interval_s,
            ),
            reload=self._reloader.for_device,
            on_failure=self._on_failure,
            on_batch=self.admission.record_batch,
            metrics=self.metrics,
        )
        self._device_caveat = device_caveat(settings.device, [detector.device for detector in detectors])
        self._batcher.start()
        self.announce_model()

    def announce_model(self) -> None:
        """Tell the metrics what is served."""
        detectors = self.detectors
        info = detectors[0].info
        self.metrics.set_model_info(info.name, info.weights, info.version, self.version)
        self.metrics.set_device_info([(one.device, device_name(one.device), one.precision) for one in detectors])

    def _on_failure(self, beyond_repair: bool) -> None:
        """No device answers."""
        if beyond_repair or self.settings.on_failure == "exit":
            detail = self._ability.detail
            self._fail(detail, detail)


def _loaded(load: LoadDetectors, settings: Settings) -> Sequence[Detector]:
    """Detectors, without the memory that loading took beyond theirs: weights in each form that was measured.

    The collection takes a fifth of a second at start, before there are requests, and little at a reload: what the
    process has loaded is frozen by then, see `service.server`.
    """
    detectors = load(settings)
    gc.collect()
    trim_host_memory()
    return detectors


def service_version() -> str:
    try:
        return version("faster-rcnn-service")
    except PackageNotFoundError:
        return "unknown"
