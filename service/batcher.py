"""Dynamic batching: callers in, batches to the devices, each caller's own answer out.

The queue and the count of places live on the event loop and nowhere else. Each device has one thread, which sees
nothing but a batch of pictures. While a device works, jobs gather; when it is free, it takes the next batch at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from service.batch_queue import BatchQueue, Shape
from service.detector import Detections, Detector, ModelInfo, check_device
from service.errors import DeadlineError, InferenceError, QueueFullError, ServiceError, UnavailableError
from service.images import Picture
from service.metrics import Metrics

T = TypeVar("T")
logger = logging.getLogger(__name__)

_CHECK_INTERVAL_S = 1.0
_RATE_SMOOTHING = 0.2  # weight of the newest batch in the measured rate
_LONGEST_RETRY_S = 60


@dataclass(frozen=True, slots=True)
class Answer:
    """Detections, and where the time went."""

    detections: Detections
    queue_s: float
    inference_s: float
    batch_size: int


@dataclass(eq=False, slots=True)
class _Job:
    picture: Picture
    shape: Shape
    arrived: float
    answer: asyncio.Future[Answer]


class _Device:
    """A detector, its thread, and whether it answers."""

    def __init__(self, detector: Detector, hang_timeout_s: float) -> None:
        self.detector = detector
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"device-{detector.device}")
        self._hang_timeout_s = hang_timeout_s
        self._error: str | None = None
        self._busy_since: float | None = None

    @property
    def failure(self) -> str | None:
        """Why it does not answer; None while it does."""
        if self._busy_since is not None and time.perf_counter() - self._busy_since > self._hang_timeout_s:
            return f"{self.detector.device} has not answered for {self._hang_timeout_s:g} s"
        return self._error

    async def detect(self, pictures: Sequence[Picture]) -> list[Detections]:
        images = [picture.pixels for picture in pictures]
        found = await self._run(lambda: self.detector.detect(images))
        if len(found) != len(images):
            raise RuntimeError(f"{len(found)} answers for {len(images)} images: this is a bug")
        return found

    async def check(self) -> bool:
        """Whether it answers for a picture that cannot be at fault; remembers if not."""
        try:
            await self._run(lambda: check_device(self.detector))
        except Exception as error:
            logger.exception("%s does not answer", self.detector.device)
            self.fail(type(error).__name__)
            return False
        self._error = None
        return True

    def fail(self, reason: str) -> None:
        self._error = f"{self.detector.device}: {reason}"

    def close(self) -> None:
        """Take no more work; a call that runs is left to end by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        self._busy_since = time.perf_counter()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._busy_since = None


class Batcher:
    """Feeds every device from one queue.

    Args:
        detectors: one per device, all with the same model.
        max_batch_size: most images in a batch.
        max_queue_delay_s: how long an idle device waits for a batch to fill.
        capacity: most images accepted and not yet answered.
        pixel_capacity: most pixels of those of them that are being, or have been, decoded.
        hang_timeout_s: a device that works longer than this on one batch counts as failing.
        metrics: where to count.
    """

    def __init__(
        self,
        detectors: Sequence[Detector],
        *,
        max_batch_size: int,
        max_queue_delay_s: float,
        capacity: int,
        pixel_capacity: int,
        hang_timeout_s: float,
        metrics: Metrics,
    ) -> None:
        if not detectors:
            raise ValueError("a batcher needs at least one detector")
        self.capacity = capacity
        self.pixel_capacity = pixel_capacity
        self._devices = [_Device(detector, hang_timeout_s) for detector in detectors]
        self._queue: BatchQueue[_Job] = BatchQueue(max_batch_size=max_batch_size, max_delay=max_queue_delay_s)
        self._changed = asyncio.Condition()
        self._metrics = metrics
        self._in_flight = 0
        self._pixels_in_flight = 0
        self._images_per_s: float | None = None  # of one device, smoothed
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False

    @property
    def info(self) -> ModelInfo:
        """The model that every device runs."""
        return self._devices[0].detector.info

    @property
    def in_flight(self) -> int:
        """Images accepted and not yet answered."""
        return self._in_flight

    @property
    def max_batch_size(self) -> int:
        return self._queue.max_batch_size

    @property
    def failure(self) -> str | None:
        """Why no device can answer; None while at least one can."""
        return None if len(self.failures) < len(self._devices) else "; ".join(self.failures)

    @property
    def failures(self) -> list[str]:
        """Of each device that does not answer, why."""
        return [failure for device in self._devices if (failure := device.failure) is not None]

    def start(self) -> None:
        """Begin to serve; call on the event loop."""
        for device in self._devices:
            task = asyncio.create_task(self._serve(device))
            task.add_done_callback(lambda done, device=device: _mourn(done, device))  # type: ignore[misc]
            self._tasks.append(task)

    async def stop(self) -> None:
        """Stop serving. Callers that still wait are told so; a batch that runs is left to end by itself."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail_all_waiting(_shutting_down())
        for device in self._devices:
            device.close()

    @contextmanager
    def places(self, count: int = 1) -> Iterator[None]:
        """Room for `count` images, from before they are decoded until they are answered: all or none.

        Raises:
            QueueFullError: there is not that much room; says when to try again, by the measured rate.
        """
        if self._in_flight + count > self.capacity:
            self._metrics.rejected.labels("queue-full").inc(count)
            raise QueueFullError(
                f"{self._in_flight} images are being answered, of at most {self.capacity}",
                retry_after_s=self._retry_after_s(count),
            )
        self._in_flight += count
        self._metrics.in_flight.set(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= count
            self._metrics.in_flight.set(self._in_flight)

    @contextmanager
    def room_for(self, pixels: int) -> Iterator[None]:
        """Memory for a picture, from before it is decoded until it is answered. An image alone always has it.

        Raises:
            QueueFullError: the pictures in flight are too large together.
        """
        if self._pixels_in_flight and self._pixels_in_flight + pixels > self.pixel_capacity:
            self._metrics.rejected.labels("pixels-full").inc()
            raise QueueFullError(
                f"{self._pixels_in_flight:,} pixels are being looked at, of at most {self.pixel_capacity:,}",
                retry_after_s=self._retry_after_s(1),
            )
        self._pixels_in_flight += pixels
        try:
            yield
        finally:
            self._pixels_in_flight -= pixels

    async def submit(self, picture: Picture, *, deadline: float) -> Answer:
        """Queue a picture and wait for its detections. A caller who is cancelled leaves the queue.

        Args:
            picture: what to look at.
            deadline: on the event loop's clock.

        Raises:
            DeadlineError: it passed first.
            InferenceError: the device failed on this picture.
            UnavailableError: the service is shutting down, or no device answers.
        """
        if self._stopped:
            raise _shutting_down()
        loop = asyncio.get_running_loop()
        shape = self._devices[0].detector.padded_shape(picture.size_hw)
        job = _Job(picture, shape, time.perf_counter(), loop.create_future())
        async with self._changed:
            self._queue.put(job)
            self._changed.notify_all()
        self._metrics.queued.set(len(self._queue))
        try:
            async with asyncio.timeout_at(deadline):
                return await job.answer
        except TimeoutError as error:
            raise DeadlineError("the image waited for a device, or for its answer, until its time was over") from error
        finally:
            self._queue.discard(job)
            self._metrics.queued.set(len(self._queue))

    async def _serve(self, device: _Device) -> None:
        while True:
            if device.failure is not None and not await device.check():
                await asyncio.sleep(_CHECK_INTERVAL_S)
                continue
            batch = await self._next_batch()
            try:
                await self._run(device, batch)
            except asyncio.CancelledError:
                _fail(batch, _shutting_down())
                raise

    async def _next_batch(self) -> list[_Job]:
        async with self._changed:
            while not (batch := self._queue.take(time.perf_counter())):
                ready = self._queue.next_ready()
                try:
                    async with asyncio.timeout(None if ready is None else ready - time.perf_counter()):
                        await self._changed.wait()
                except TimeoutError:
                    continue
        self._metrics.queued.set(len(self._queue))
        return batch

    async def _run(self, device: _Device, batch: list[_Job]) -> None:
        started = time.perf_counter()  # the event loop's own clock ticks in milliseconds
        self._metrics.batch_size.observe(len(batch))
        try:
            found = await device.detect([job.picture for job in batch])
        except Exception:
            logger.exception("%s failed on a batch of %d", device.detector.device, len(batch))
            await self._find_the_guilty(device, batch)
            return
        elapsed = time.perf_counter() - started
        self._measure(len(batch) / max(elapsed, 1e-6))
        self._metrics.stage_seconds.labels("inference").observe(elapsed)
        for job, detections in zip(batch, found, strict=True):
            self._metrics.stage_seconds.labels("queue").observe(started - job.arrived)
            if not job.answer.done():
                job.answer.set_result(Answer(detections, started - job.arrived, elapsed, len(batch)))

    async def _find_the_guilty(self, device: _Device, batch: list[_Job]) -> None:
        """After a failure: is it the device, or which picture? Nobody else's answer is lost to it."""
        if not await device.check():
            if self.failure is None:
                for job in reversed(batch):
                    if not job.answer.done():
                        self._queue.put_back(job)
                async with self._changed:
                    self._changed.notify_all()
            else:
                error = UnavailableError("no device answers", retry_after_s=1)
                _fail(batch, error)
                self._fail_all_waiting(error)
        elif len(batch) == 1:
            _fail(batch, InferenceError("the device failed on this image; the failure is logged"))
        else:
            for job in batch:
                if not job.answer.done():
                    await self._run(device, [job])

    def _fail_all_waiting(self, error: ServiceError) -> None:
        while waiting := self._queue.take(math.inf):
            _fail(waiting, error)

    def _measure(self, images_per_s: float) -> None:
        before = images_per_s if self._images_per_s is None else self._images_per_s
        self._images_per_s = before + _RATE_SMOOTHING * (images_per_s - before)

    def _retry_after_s(self, count: int) -> int:
        """Seconds until so many of the images in flight are answered that `count` more fit."""
        if self._images_per_s is None:
            return 1
        surplus = self._in_flight + count - self.capacity
        seconds = math.ceil(surplus / (self._images_per_s * len(self._devices)))
        return min(max(seconds, 1), _LONGEST_RETRY_S)


def _shutting_down() -> UnavailableError:
    return UnavailableError("the service is shutting down")


def _mourn(task: asyncio.Task[None], device: _Device) -> None:
    """A worker only ever ends by being cancelled. Should it not, its device must not look well."""
    if not task.cancelled():
        logger.error("the worker of %s ended: this is a bug", device.detector.device, exc_info=task.exception())
        device.fail("its worker ended")


def _fail(batch: Sequence[_Job], error: ServiceError) -> None:
    for job in batch:
        if not job.answer.done():
            job.answer.set_exception(error)
