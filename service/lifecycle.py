"""One service's life: loading, then ok, at last draining; and failing where it cannot answer."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, NamedTuple, TypeVar

from service.batcher import Batcher
from service.detector import Detector, ModelInfo
from service.errors import UnavailableError
from service.images import Picture, decode
from service.metrics import Metrics
from service.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")
Status = Literal["ok", "loading", "draining", "failing"]
LoadDetectors = Callable[[Settings], Sequence[Detector]]

_GPU_BATCH_SIZE, _CPU_BATCH_SIZE = 8, 1
_RETRY_WHILE_LOADING_S = 5


class Condition(NamedTuple):
    """How the service is, in a word and in a sentence."""

    status: Status
    detail: str


class Service:
    """What the routes work with.

    Args:
        settings: the settings.
        load: makes the detectors; runs in a thread, so that the service can say that it is loading.
        on_load_failure: called when that fails, as a service that can never answer should end.
    """

    def __init__(
        self, settings: Settings, load: LoadDetectors, on_load_failure: Callable[[], None] | None = None
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.version = _version()
        self.load_error: Exception | None = None
        self.detectors: Sequence[Detector] = ()
        self._load = load
        self._on_load_failure = on_load_failure
        self._batcher: Batcher | None = None
        self._draining = False
        self._started = time.monotonic()
        self._loading: asyncio.Task[None] | None = None
        threads = settings.decode_threads or len(os.sched_getaffinity(0))
        self._decoders = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="decode")

    async def start(self) -> None:
        """Begin to load. Returns at once."""
        self._loading = asyncio.create_task(self._load_detectors())

    async def stop(self) -> None:
        """End: requests that still wait are told so."""
        self.drain()
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        if self._batcher is not None:
            await self._batcher.stop()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def drain(self) -> None:
        """Refuse new work from now on; what was accepted is still answered."""
        self._draining = True
        self.metrics.ready.set(0)

    @property
    def condition(self) -> Condition:
        if self._draining:
            return Condition("draining", "the service is shutting down; what was accepted is being answered")
        if self.load_error is not None:
            return Condition("failing", f"the model cannot be loaded: {type(self.load_error).__name__}")
        if self._batcher is None:
            return Condition("loading", "the model is being loaded")
        if self._batcher.failure is not None:
            return Condition("failing", f"the device does not answer: {self._batcher.failure}")
        return Condition("ok", "the model is loaded and its device answers")

    @property
    def batcher(self) -> Batcher:
        """The way to the devices.

        Raises:
            UnavailableError: loading, draining or failing.
        """
        condition = self.condition
        if self._batcher is None or condition.status != "ok":
            raise UnavailableError(condition.detail, retry_after_s=_RETRY_WHILE_LOADING_S)
        return self._batcher

    @property
    def info(self) -> ModelInfo | None:
        """The model served; None until it is loaded."""
        return self.detectors[0].info if self.detectors else None

    @property
    def images_in_flight(self) -> int:
        return 0 if self._batcher is None else self._batcher.in_flight

    @property
    def max_batch_size(self) -> int | None:
        return None if self._batcher is None else self._batcher.max_batch_size

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._started

    async def decode(self, data: bytes) -> Picture:
        """Decode an image in the thread pool; see `images.decode`."""
        with self.metrics.stage_seconds.labels("decode").time():
            return await self.in_thread(lambda: decode(data, max_pixels=self.settings.max_image_pixels))

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run something that blocks beside the event loop, in the decoding threads."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work)

    async def _load_detectors(self) -> None:
        try:
            self.detectors = await asyncio.to_thread(self._load, self.settings)
        except Exception as error:
            self.load_error = error
            logger.exception("the model cannot be loaded")
            if self._on_load_failure is not None:
                self._on_load_failure()
            return
        self._batcher = Batcher(
            self.detectors,
            max_batch_size=_batch_size(self.settings, self.detectors),
            max_queue_delay_s=self.settings.max_queue_delay_ms / 1000,
            capacity=self.settings.queue_capacity,
            metrics=self.metrics,
        )
        self._batcher.start()
        self.metrics.ready.set(1)
        logger.info("ready: %s on %s", self.detectors[0].info.weights, ", ".join(d.device for d in self.detectors))


def _batch_size(settings: Settings, detectors: Sequence[Detector]) -> int:
    if settings.max_batch_size != "auto":
        return settings.max_batch_size
    # A batch keeps a GPU's units busy; a CPU's few are busy with one image, and lose their cache to a second.
    return _CPU_BATCH_SIZE if any(d.device == "cpu" for d in detectors) else _GPU_BATCH_SIZE


def _version() -> str:
    try:
        return version("faster-rcnn-service")
    except PackageNotFoundError:
        return "unknown"
