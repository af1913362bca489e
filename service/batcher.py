"""Dynamic batching: callers in, batches to the devices, each caller's own answer out.

The queue lives on the event loop and nowhere else. Each device has one thread, which sees nothing but a batch of
pictures. While a device works, jobs gather; when it is free, it takes the next batch at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from service.admission import Admission
from service.batch_queue import BatchQueue, Priority, Shape
from service.detector import Detections, Detector, EarlyUploader, ModelInfo
from service.device import Device, DeviceHungError, DeviceMemoryError, Reload
from service.errors import DeadlineError, InferenceError, ServiceError, UnavailableError
from service.images import Picture
from service.limits import BatcherLimits
from service.metrics import Metrics

logger = logging.getLogger(__name__)

_CHECK_INTERVAL_S = 1.0


class Answer(NamedTuple):
    """Detections, and where the time went."""

    detections: Detections
    queue_s: float
    inference_s: float
    batch_size: int


@dataclass(eq=False, slots=True)
class _Job:
    picture: Picture
    shape: Shape
    priority: Priority
    arrived: float
    answer: asyncio.Future[Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """Feeds every device from one queue.

    Args:
        detectors: one per device, all with the same model.
        limits: how much at once, and how long.
        reload: makes a detector anew for a device whose thread hangs in the old one.
        on_failure: called when no device answers any more, with whether none can be repaired; perhaps again and again.
        metrics: where to count.
    """

    def __init__(
        self,
        detectors: Sequence[Detector],
        *,
        limits: BatcherLimits,
        reload: Reload,
        on_failure: Callable[[bool], None],
        metrics: Metrics,
    ) -> None:
        if not detectors:
            raise ValueError("a batcher needs at least one detector")
        # Idle for half of the interval, then checked, with the other half to answer.
        self._idle_s = limits.canary_interval_s / 2 or math.inf
        self._devices = [
            Device(
                detector,
                reload=reload,
                max_batch_size=limits.max_batch_size,
                hang_timeout_s=limits.hang_timeout_s,
                canary_timeout_s=min(limits.hang_timeout_s, self._idle_s),
            )
            for detector in detectors
        ]
        self.admission = Admission(
            capacity=limits.capacity,
            pixel_capacity=limits.pixel_capacity,
            byte_capacity=limits.byte_capacity,
            devices=lambda: len(self._devices) - len(self.failures),
            metrics=metrics,
        )
        self.max_batch_size = limits.max_batch_size
        self._queue: BatchQueue[_Job] = BatchQueue(
            max_batch_size=limits.max_batch_size,
            max_delay=limits.max_queue_delay_s,
            head_start=limits.priority_head_start_s,
        )
        self._changed = asyncio.Event()  # wakes the workers, whenever the queue has got longer
        self._on_failure = on_failure
        self._batch_size = metrics.batch_size
        metrics.queued.set_function(lambda: len(self._queue))
        self._queue_seconds = metrics.stage_seconds.labels("queue")
        self._inference_seconds = metrics.stage_seconds.labels("inference")
        self._workers: dict[Device, asyncio.Task[None]] = {}
        self._stopped = False

    @property
    def detectors(self) -> list[Detector]:
        """One per device."""
        return [device.detector for device in self._devices]

    @property
    def info(self) -> ModelInfo:
        """The model that every device runs."""
        return self._devices[0].detector.info

    @property
    def failure(self) -> str | None:
        """Why no device can answer; None while at least one can."""
        for device in self._devices:
            if device.failure is None:
                return None
        return "; ".join(self.failures)

    @property
    def failures(self) -> list[str]:
        """Of each device that does not answer, why."""
        return [device.failure for device in self._devices if device.failure is not None]

    @property
    def batch_caps(self) -> dict[str, int]:
        """Of each device that has run out of memory of late, how many images it is trusted with at once."""
        return {device.name: device.cap.now for device in self._devices if device.cap.lowered}

    @property
    def busy(self) -> bool:
        """Whether a device's thread is at work, or hangs."""
        return any(device.busy for device in self._devices)

    def sent_ahead(self, picture: Picture) -> Picture:
        """The picture, sent to the device already if there is only one and it takes pictures while it works.

        Called by the thread that has decoded it.
        """
        detector = self._devices[0].detector
        if len(self._devices) > 1 or not _uploads_early(type(detector)):
            return picture
        assert isinstance(detector, EarlyUploader)
        return Picture(picture.pixels, on_device=detector.upload(picture.pixels))

    def pixels(self, width: int, height: int) -> int:
        """What a picture counts in the budget: its own pixels, which wait, or those of its padded shape, if more.

        May be called in any thread.
        """
        padded_height, padded_width = self._devices[0].detector.padded_shape((height, width))
        return max(width * height, padded_width * padded_height)

    def start(self) -> None:
        """Begin to serve; call on the event loop."""
        for device in self._devices:
            self._employ(device)

    async def stop(self) -> None:
        """Stop serving. Callers that still wait are told so; a batch that runs is left to end by itself."""
        self._stopped = True
        for worker in self._workers.values():
            worker.cancel()
        await asyncio.gather(*self._workers.values(), return_exceptions=True)
        self._fail_all_waiting(_shutting_down())
        for device in self._devices:
            device.close()

    async def submit(self, picture: Picture, *, deadline: float, priority: Priority = Priority.NORMAL) -> Answer:
        """Queue a picture and wait for its detections. A caller who is cancelled leaves the queue.

        Args:
            picture: what to look at.
            deadline: on the event loop's clock.
            priority: who goes first.

        Raises:
            DeadlineError: it passed first.
            InferenceError: the device failed on this picture.
            UnavailableError: the service is shutting down, or no device answers.
        """
        if self._stopped:
            raise _shutting_down()
        if self.failure is not None:
            raise _no_device()
        shape = self._devices[0].detector.padded_shape(picture.size_hw)
        job = _Job(picture, shape, priority, time.perf_counter())
        expiry = asyncio.get_running_loop().call_at(deadline, _expire, job)
        self._queue.put(job)
        self._wake()
        try:
            return await job.answer
        finally:
            expiry.cancel()
            self._queue.discard(job)
            del job, expiry  # a failure holds this frame: else only the collector would free the picture

    def _wake(self) -> None:
        """Have the workers that wait look at the queue."""
        self._changed.set()
        self._changed.clear()

    def _employ(self, device: Device) -> None:
        """Start the worker of a device."""
        worker = self._workers[device] = asyncio.create_task(self._serve(device), name=f"worker-{device.name}")
        worker.add_done_callback(lambda done: self._replace(done, device))

    def _replace(self, worker: asyncio.Task[None], device: Device) -> None:
        """A worker only ever ends by `stop`. Should it not, its device must not look well until another has begun."""
        if self._stopped:
            return
        error = None if worker.cancelled() else worker.exception()
        logger.error("the worker of %s ended: this is a bug; another is started", device.name, exc_info=error)
        device.failure = f"{device.name}: its worker ended"
        self._lose()
        self._employ(device)

    async def _serve(self, device: Device) -> None:
        while True:
            if device.failure is None and (batch := await self._next_batch(device)):
                try:
                    await self._run(device, batch)
                except BaseException:  # cancelled by `stop`, or a bug
                    _fail(batch, _shutting_down() if self._stopped else _no_device())
                    raise
                finally:
                    del batch  # not until there is another
            elif not await device.check():
                self._lose()
                await asyncio.sleep(_CHECK_INTERVAL_S)

    async def _next_batch(self, device: Device) -> list[_Job]:
        """What to run next; nothing once the device has been idle for so long that it should be checked."""
        loop = asyncio.get_running_loop()
        idle_until = time.perf_counter() + self._idle_s
        while not (batch := self._queue.take(time.perf_counter(), at_most=device.cap.now)):
            if time.perf_counter() >= idle_until:
                return []
            ready = self._queue.next_ready(at_most=device.cap.now)
            until = idle_until if ready is None else min(ready, idle_until)
            alarm = None if until == math.inf else loop.call_later(until - time.perf_counter(), self._wake)
            try:
                await self._changed.wait()
            finally:
                if alarm is not None:
                    alarm.cancel()
        return batch

    async def _run(self, device: Device, batch: Sequence[_Job]) -> None:
        batch = [job for job in batch if not job.answer.done()]
        if not batch:
            return
        if device.failure is not None:
            await self._hand_over(batch)
            return
        started = time.perf_counter()  # the event loop's own clock ticks in milliseconds
        self._batch_size.observe(len(batch))
        try:
            found = await device.detect([job.picture for job in batch])
        except Exception as error:
            logger.exception("%s failed on a batch of %d", device.name, len(batch))
            await self._recover(device, batch, error)
            return
        elapsed = time.perf_counter() - started
        self.admission.measure(len(batch), elapsed)
        self._inference_seconds.observe(elapsed)
        for job, detections in zip(batch, found, strict=True):
            self._queue_seconds.observe(started - job.arrived)
            if not job.answer.done():
                job.answer.set_result(Answer(detections, started - job.arrived, elapsed, len(batch)))

    async def _recover(self, device: Device, batch: list[_Job], error: Exception) -> None:
        """After a failure: is it the batch's size, the device, or a picture? Nobody else's answer is lost to it."""
        if isinstance(error, DeviceMemoryError) and len(batch) > 1:
            half = -(-len(batch) // 2)
            await self._run(device, batch[:half])
            await self._run(device, batch[half:])
        elif isinstance(error, DeviceHungError):
            _fail(batch, UnavailableError("the device hangs; one of these images may be why", retry_after_s=1))
            self._lose()
        elif not await device.check():
            await self._hand_over(batch)
        elif len(batch) > 1:
            for job in batch:
                await self._run(device, [job])
        elif isinstance(error, DeviceMemoryError):
            _fail(batch, UnavailableError("the device has not enough memory for this image now", retry_after_s=1))
        else:
            _fail(batch, InferenceError("the device failed on this image; the failure is logged"))

    async def _hand_over(self, batch: Sequence[_Job]) -> None:
        """To the other devices, if any answers."""
        if self.failure is not None:
            _fail(batch, _no_device())
            self._lose()
            return
        for job in reversed(batch):
            self._queue.put_back(job)
        self._wake()

    def _lose(self) -> None:
        """A device does not answer. If it was the last one, nobody is left waiting for it."""
        if self.failure is not None:
            self._fail_all_waiting(_no_device())
            self._on_failure(all(device.beyond_repair for device in self._devices))

    def _fail_all_waiting(self, error: ServiceError) -> None:
        while waiting := self._queue.take(math.inf):
            _fail(waiting, error)


@cache
def _uploads_early(kind: type[Detector]) -> bool:
    return issubclass(kind, EarlyUploader)  # a look at a protocol takes longer than all else that is done for a picture


def _shutting_down() -> UnavailableError:
    return UnavailableError("the service is shutting down")


def _no_device() -> UnavailableError:
    return UnavailableError("no device answers", retry_after_s=1)


def _expire(job: _Job) -> None:
    _fail([job], DeadlineError("the image waited for a device, or for its answer, until its time was over"))


def _fail(batch: Sequence[_Job], error: ServiceError) -> None:
    for job in batch:
        if not job.answer.done():
            job.answer.set_exception(error)
