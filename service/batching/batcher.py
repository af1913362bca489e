"""Dynamic batching: callers in, batches to the devices, each caller's own answer out.

The queue lives on the event loop and nowhere else. Each device has a worker, which takes batches from it. While a
device works, pictures gather; when it has room, it takes the next batch.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.batching.batch_queue import BatchQueue, Priority
from service.batching.device_worker import DeviceWorker, no_device
from service.batching.fairness import Caller
from service.batching.shared_queue import Answer, QueuedPicture, SharedQueue
from service.devices.canary import KnownAnswer
from service.devices.detector import Detector, ModelInfo
from service.devices.device import Device, Reload, pipelined
from service.errors import ServiceError, UnavailableError
from service.images.pictures import Picture, Pixels, pageable
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_BUSY_INTERVALS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class BatcherLimits:
    """How much at once, and how long.

    Args:
        max_batch_size: most images in a batch.
        max_queue_delay_s: how long an idle device waits for a batch to fill.
        priority_head_start_s: see `batch_queue`.
        hang_timeout_s: a device that works longer than this on one batch counts as failing.
        canary_interval_s: an idle device that does not answer, or answers wrongly, is noticed within this; a busy one
            that answers wrongly within five times as long. 0 for never.
    """

    max_batch_size: int
    max_queue_delay_s: float = 0.0
    priority_head_start_s: float = 10.0
    hang_timeout_s: float = 120.0
    canary_interval_s: float = 0.0


class Batcher:
    """Queues pictures and feeds every device from that one queue.

    Args:
        detectors: one per device, all with the same model.
        limits: how much at once, and how long.
        reload: makes a new detector for a device whose thread hangs in the old one.
        on_failure: called when no device answers any more, with whether none can be repaired; perhaps again and again.
        on_batch: called with the size of each batch that was answered, and the seconds that took.
        metrics: where to count.
    """

    def __init__(
        self,
        detectors: Sequence[Detector],
        *,
        limits: BatcherLimits,
        reload: Reload,
        on_failure: Callable[[bool], None],
        on_batch: Callable[[int, float], None],
        metrics: Metrics,
    ) -> None:
        if not detectors:
            raise ValueError("a batcher needs at least one detector")
        # Idle for half of the interval, then checked, with the other half to answer.
        self._idle_s = limits.canary_interval_s / 2 or math.inf
        self._busy_s = limits.canary_interval_s * _BUSY_INTERVALS or math.inf
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
        self.max_batch_size = limits.max_batch_size
        self._queue: BatchQueue[QueuedPicture] = BatchQueue(
            max_batch_size=limits.max_batch_size,
            max_delay=limits.max_queue_delay_s,
            head_start=limits.priority_head_start_s,
        )
        self._shared = SharedQueue(self._queue)
        self._on_failure = on_failure
        self._on_batch = on_batch
        self._metrics = metrics
        queue = self._queue
        metrics.queued.set_function(lambda: len(queue))  # not `self`, which has the model
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
    def answering(self) -> int:
        """How many devices answer."""
        return len(self._devices) - len(self.failures)

    @property
    def batch_caps(self) -> dict[str, int]:
        """The bound on a batch, of each device that has run out of memory recently."""
        return {device.name: device.cap.now for device in self._devices if device.cap.lowered}

    @property
    def busy(self) -> bool:
        """Whether a device's thread is busy, or hangs."""
        return any(device.busy for device in self._devices)

    def allocate(self, shape: tuple[int, int, int]) -> Pixels:
        """Memory to decode a picture into, which the devices copy from fastest. May be called in any thread."""
        ahead = pipelined(self._devices[0].detector)
        return pageable(shape) if ahead is None else ahead.allocate(shape)

    def upload_early(self, picture: Picture) -> Picture:
        """The picture, sent to the device already if there is only one and it takes pictures while it works.

        Called by the thread that has decoded it.
        """
        ahead = pipelined(self._devices[0].detector) if len(self._devices) == 1 else None
        return picture if ahead is None else Picture(picture.pixels, on_device=ahead.upload(picture.pixels))

    def pixels(self, width: int, height: int) -> int:
        """What a picture counts in the budget: its own pixels, which wait, or those of its padded shape, if more.

        May be called in any thread.
        """
        padded_height, padded_width = self._devices[0].detector.padded_shape((height, width))
        return max(width * height, padded_width * padded_height)

    def start(self) -> None:
        """Begin to serve; call on the event loop."""
        for device in self._devices:
            self._start_worker(device)

    async def stop(self) -> None:
        """Stop serving. Fail the callers that still wait; a batch that runs ends on its own."""
        self._stopped = True
        for worker in self._workers.values():
            worker.cancel()
        await asyncio.gather(*self._workers.values(), return_exceptions=True)
        self._fail_all_waiting(_shutting_down())
        for device in self._devices:
            device.close()

    def switch(self, detectors: Sequence[Detector], answers: Sequence[KnownAnswer]) -> None:
        """Run the next batches with another model. Batches in flight end with the old one.

        Args:
            detectors: one per device, in the same order.
            answers: what each has answered to the known picture.
        """
        for device, detector, answer in zip(self._devices, detectors, answers, strict=True):
            device.switch(detector, answer)
        for queued in self._queue.take_all():  # it may pad pictures otherwise
            queued.shape = detectors[0].padded_shape(queued.picture.size_hw)
            self._queue.put(queued)
        self._shared.wake()

    async def submit(self, picture: Picture, *, priority: Priority = Priority.NORMAL, caller: Caller = None) -> Answer:
        """Queue a picture and wait for its detections. A caller who is cancelled leaves the queue.

        Args:
            picture: what to detect in.
            priority: how soon its turn comes.
            caller: whose it is; callers take turns.

        Raises:
            InferenceError: the device failed on this picture.
            UnavailableError: the service is shutting down, or no device answers.
        """
        if self._stopped:
            raise _shutting_down()
        if self.failure is not None:
            raise no_device()
        shape = self._devices[0].detector.padded_shape(picture.size_hw)
        queued = QueuedPicture(picture, shape, priority, time.perf_counter(), caller)
        self._queue.put(queued)
        self._shared.wake()
        try:
            return await queued.answer
        finally:
            self._queue.discard(queued)

    def _start_worker(self, device: Device) -> None:
        """Start the worker of a device."""
        worker = DeviceWorker(
            device,
            self._shared,
            idle_s=self._idle_s,
            busy_s=self._busy_s,
            others_answer=lambda: self.failure is None,
            on_lost=self._on_device_lost,
            on_measured=self._on_batch,
            metrics=self._metrics,
        )
        serving = worker.run(lambda: _shutting_down() if self._stopped else no_device())
        task = self._workers[device] = asyncio.create_task(serving, name=f"worker-{device.name}")
        task.add_done_callback(lambda done: self._on_worker_done(done, device))

    def _on_worker_done(self, worker: asyncio.Task[None], device: Device) -> None:
        """Replace a worker that ended other than by `stop`. Its device fails until the new one runs."""
        if self._stopped:
            return
        error = None if worker.cancelled() else worker.exception()
        logger.error("the worker of %s ended: this is a bug; another is started", device.name, exc_info=error)
        device.failure = f"{device.name}: its worker ended"
        self._on_device_lost()
        self._start_worker(device)

    def _on_device_lost(self) -> None:
        """Note that a device does not answer. If it was the last one, fail all callers that wait."""
        if self.failure is not None:
            self._fail_all_waiting(no_device())
            self._on_failure(all(device.beyond_repair for device in self._devices))

    def _fail_all_waiting(self, error: ServiceError) -> None:
        while waiting := self._queue.take(math.inf):
            for one in waiting:
                one.fail(error)


def _shutting_down() -> UnavailableError:
    return UnavailableError("the service is shutting down")
