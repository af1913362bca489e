"""What runs the batches of one device: it takes them from the queue, keeps the device busy, and sorts out failures.

A device of a `Pipelined` detector has two batches in flight: one that it works on, and one launched behind it, so that
it need not wait for the host in between. All of this is on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.batching.pace import Pace
from service.batching.shared_queue import Answer, Batch, SharedQueue
from service.devices.detector import Detections, ModelInfo
from service.devices.device import Device, DeviceHungError, DeviceMemoryError, InFlight
from service.errors import InferenceError, ServiceError, UnavailableError
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_CHECK_INTERVAL_S = 1.0
# After this long without a request a device may prepare for later ones: preparing delays requests that come meanwhile.
_QUIET_S = 1.0


@dataclass(eq=False, slots=True)
class _Flight:
    """A batch that the device has taken."""

    batch: Batch
    begun: InFlight
    started: float  # when the device began with it, or was free to
    finish: asyncio.Task[list[Detections]] | None = None


class DeviceWorker:
    """Serves from one device until it is cancelled.

    Args:
        device: what runs the batches.
        shared: where they come from.
        idle_s: how long the device may be idle before it is checked.
        busy_s: how long it may be busy.
        others_answer: whether another device does.
        on_lost: called when the device does not answer, perhaps again and again.
        on_measured: called with how many images the device has answered, and in how many seconds.
        metrics: where to count.
    """

    def __init__(
        self,
        device: Device,
        shared: SharedQueue,
        *,
        idle_s: float,
        busy_s: float,
        others_answer: Callable[[], bool],
        on_lost: Callable[[], None],
        on_measured: Callable[[int, float], None],
        metrics: Metrics,
    ) -> None:
        self.device = device
        self._shared = shared
        self._idle_s = idle_s
        self._busy_s = busy_s
        self._checked_at = time.perf_counter()
        self._others_answer = others_answer
        self._on_lost = on_lost
        self._on_measured = on_measured
        self._batch_size = metrics.batch_size
        self._busy_seconds = metrics.device_busy.labels(device.name)
        self._queue_seconds = metrics.stage_seconds.labels("queue")
        self._inference_seconds = metrics.stage_seconds.labels("inference")
        self._pace = Pace()
        self._flights: deque[_Flight] = deque()  # in the order of their launch
        self._taken: list[Batch] = []  # from the queue, and not yet answered
        self._may_prepare = device.depth > 1

    async def run(self, reason: Callable[[], ServiceError]) -> None:
        """Serve.

        Args:
            reason: why those are not answered whose batches are at hand when this is cancelled or fails.
        """
        try:
            while True:
                await self._step()
        except BaseException:
            for flight in self._flights:
                if flight.finish is not None:
                    flight.finish.cancel()
            _fail([picture for batch in self._taken for picture in batch], reason())
            raise

    async def _step(self) -> None:
        device, flights = self.device, self._flights
        if len(flights) == device.depth:
            await self._settle()
        elif device.failure is None and not self._check_due and (batch := await self._next_batch()):
            self._taken.append(batch)
            await self._launch(batch)
        elif flights:  # the oldest is over, or the device fails
            await self._settle()
        elif self._may_prepare and device.failure is None and not self._check_due:
            await self._prepare()
        elif not await self._check():
            self._on_lost()
            await asyncio.sleep(_CHECK_INTERVAL_S)

    @property
    def _check_due(self) -> bool:
        """Whether the device has been busy for so long that the next batch waits until it is checked."""
        return time.perf_counter() - self._checked_at >= self._busy_s

    async def _check(self) -> bool:
        answers = await self.device.check()
        self._checked_at = time.perf_counter()
        return answers

    async def _next_batch(self) -> Batch:
        """What to launch next. Nothing once the oldest batch in flight is over, or the device was idle for long."""
        queue, flights = self._shared.queue, self._flights
        idle_s = min(self._idle_s, _QUIET_S) if self._may_prepare else self._idle_s
        idle_until = math.inf if flights else time.perf_counter() + idle_s
        while not (flights and _is_over(flights[0])):
            hold_until, at_most = self._hold_until(), self.device.cap.now
            now = time.perf_counter()
            if taken := queue.take(now, at_most=at_most, hold_until=hold_until):
                if batch := [one for one in taken if not one.answer.done()]:
                    return batch
                continue
            if now >= idle_until:
                break
            ready = queue.next_ready(at_most=at_most, hold_until=hold_until)
            await self._shared.changed(min(idle_until, math.inf if ready is None else ready))
        return []

    def _hold_until(self) -> float:
        """Until when to leave a batch that is not full in the queue, where it may grow."""
        if not self._flights:
            return -math.inf
        ahead = self._flights[0]
        return self._pace.follow_at(ahead.batch[0].shape, len(ahead.batch), ahead.started)

    async def _prepare(self) -> None:
        while self._may_prepare and not len(self._shared.queue):
            self._may_prepare = await self.device.prepare()

    async def _launch(self, batch: Batch) -> None:
        self._may_prepare = self.device.depth > 1
        started = time.perf_counter()  # the event loop's own clock ticks in milliseconds
        self._batch_size.observe(len(batch))
        try:
            begun = await self.device.launch([one.picture for one in batch])
        except Exception as error:
            logger.exception("%s failed on a batch of %d", self.device.name, len(batch))
            await self._sort_out([*await self._settled_rest(error), (batch, error)])
            return
        self._flights.append(_Flight(batch, begun, started))
        if len(self._flights) == 1 and self.device.depth > 1:
            self._wait_beside(self._flights[0])

    def _wait_beside(self, flight: _Flight) -> None:
        """Wait for it while the next batch is chosen."""
        flight.finish = asyncio.create_task(self.device.finish(flight.begun), name=f"finish-{self.device.name}")
        flight.finish.add_done_callback(lambda _: self._shared.wake())

    async def _settle(self) -> None:
        """Answer the callers of the oldest batch in flight. If it failed, those of all that are in flight."""
        batch = self._flights[0].batch
        error = await self._finished()
        try:
            if error is not None:
                await self._sort_out([(batch, error), *await self._settled_rest(error)])
            elif self._flights:
                self._wait_beside(self._flights[0])
        finally:
            del batch, error  # a failure holds this frame: else only the collector would free the pictures

    async def _settled_rest(self, error: Exception) -> list[tuple[Batch, Exception]]:
        """Wait for all batches in flight, after a failure; those that failed too, and why."""
        failed = []
        while self._flights:
            batch = self._flights[0].batch
            if isinstance(error, DeviceHungError) or self.device.failure is not None:
                lost = self._flights.popleft()
                if lost.finish is not None:
                    lost.finish.add_done_callback(_ignore)
                other: Exception | None = UnavailableError("the device failed on what came before")
            else:
                other = await self._finished()
            if other is not None:
                failed.append((batch, other))
        return failed

    async def _finished(self) -> Exception | None:
        """Wait for the oldest batch in flight, and give its callers their answers; or return why there are none."""
        flight = self._flights[0]
        try:
            found = await (flight.finish or self.device.finish(flight.begun))
        except Exception as error:
            logger.exception("%s failed on a batch of %d", self.device.name, len(flight.batch))
            return error
        finally:
            self._flights.popleft()
            if self._flights:
                self._flights[0].started = max(self._flights[0].started, time.perf_counter())
        self._answer(flight.batch, found, flight.started, flight.begun.detector.info)
        self._taken.remove(flight.batch)
        return None

    def _answer(self, batch: Batch, found: Sequence[Detections], started: float, info: ModelInfo) -> None:
        elapsed = time.perf_counter() - started
        self._pace.measure(batch[0].shape, len(batch), elapsed)
        self._on_measured(len(batch), elapsed)
        self._inference_seconds.observe(elapsed)
        self._busy_seconds.inc(elapsed)
        for one, detections in zip(batch, found, strict=True):
            self._queue_seconds.observe(started - one.arrived)
            if not one.answer.done():
                one.answer.set_result(Answer(detections, started - one.arrived, elapsed, len(batch), info))

    async def _sort_out(self, failed: Sequence[tuple[Batch, Exception]]) -> None:
        """Give the callers of failed batches an answer each, one batch after the other: nothing is in flight now."""
        for batch, error in failed:
            await self._recover(batch, error)
            self._taken.remove(batch)
            traceback.clear_frames(error.__traceback__)  # they hold the pictures, and the task that holds the error

    async def _run(self, batch: Batch) -> None:
        """Run a batch while no other is in flight, and answer its callers."""
        batch = [one for one in batch if not one.answer.done()]
        if not batch:
            return
        if self.device.failure is not None:
            self._hand_over(batch)
            return
        started = time.perf_counter()
        self._batch_size.observe(len(batch))
        try:
            begun = await self.device.launch([one.picture for one in batch])
            found = await self.device.finish(begun)
        except Exception as error:
            logger.exception("%s failed on a batch of %d", self.device.name, len(batch))
            await self._recover(batch, error)
            return
        self._answer(batch, found, started, begun.detector.info)

    async def _recover(self, batch: Batch, error: Exception) -> None:
        """Find out whether the size of the batch, the device or a picture failed, and answer all other callers."""
        if isinstance(error, DeviceMemoryError) and len(batch) > 1:
            half = -(-len(batch) // 2)
            await self._run(batch[:half])
            await self._run(batch[half:])
        elif isinstance(error, DeviceHungError):
            _fail(batch, UnavailableError("the device hangs; one of these images may be why"))
            self._on_lost()
        elif self.device.failure is not None or not await self._check():
            self._hand_over(batch)
        elif len(batch) > 1:
            for one in batch:
                await self._run([one])
        elif isinstance(error, DeviceMemoryError):
            _fail(batch, UnavailableError("the device has not enough memory for this image now"))
        else:
            _fail(batch, InferenceError("the device failed on this image; the failure is logged"))

    def _hand_over(self, batch: Batch) -> None:
        """Put a batch back for the other devices, or fail it if none answers."""
        if not self._others_answer():
            _fail(batch, no_device())
            self._on_lost()
            return
        for one in reversed(batch):
            if not one.answer.done():
                self._shared.queue.put_back(one)
        self._shared.wake()


def no_device() -> UnavailableError:
    return UnavailableError("no device answers")


def _ignore(finish: asyncio.Task[list[Detections]]) -> None:
    """Read the error of a batch that has been answered, or asyncio logs it as never retrieved."""
    if not finish.cancelled():
        finish.exception()


def _is_over(flight: _Flight) -> bool:
    return flight.finish is not None and flight.finish.done()


def _fail(batch: Batch, error: ServiceError) -> None:
    for one in batch:
        one.fail(error)
