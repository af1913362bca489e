"""Pictures that wait for their answers, and the queue in which all workers of a service find them."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from service.batching.batch_queue import BatchQueue, Priority, Shape
from service.batching.fairness import Caller
from service.devices.detector import Detections, ModelInfo
from service.errors import ServiceError
from service.images.pictures import Picture


class Answer(NamedTuple):
    """Detections, and where the time went."""

    detections: Detections
    queue_s: float
    inference_s: float
    batch_size: int
    info: ModelInfo  # of the model that answered


@dataclass(eq=False, slots=True)
class QueuedPicture:
    """A picture that waits for its answer."""

    picture: Picture
    shape: Shape
    priority: Priority
    arrived: float
    caller: Caller = None
    answer: asyncio.Future[Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def fail(self, error: ServiceError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


Batch = list[QueuedPicture]


class SharedQueue:
    """The queue that all devices are fed from, and the event that wakes those who wait for it."""

    def __init__(self, queue: BatchQueue[QueuedPicture]) -> None:
        self.queue = queue
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Wake all workers that wait."""
        self._changed.set()
        self._changed.clear()

    async def changed(self, until: float) -> None:
        """Wait for `wake`, at most until then on `time.perf_counter`'s clock."""
        seconds = until - time.perf_counter()
        alarm = None if seconds == math.inf else asyncio.get_running_loop().call_later(seconds, self.wake)
        try:
            await self._changed.wait()
        finally:
            if alarm is not None:
                alarm.cancel()
