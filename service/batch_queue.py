"""Which images run next, together. Pure: no clock, no asyncio, no threads.

Images share a batch only with images of the same padded shape, because padding is what lets neighbours change an
image's detections. So there is a line per shape, each first in, first out.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

Shape = tuple[int, int]


class Queued(Protocol):
    """What the queue needs to know of a job."""

    @property
    def shape(self) -> Shape: ...
    @property
    def arrived(self) -> float:
        """Seconds on any clock, the same for all jobs."""
        ...


Job = TypeVar("Job", bound=Queued)


class BatchQueue(Generic[Job]):
    """Lines of jobs by shape.

    Args:
        max_batch_size: most jobs in a batch.
        max_delay: seconds that the oldest job of an unfilled batch is held back for company; 0 for not at all.
    """

    def __init__(self, *, max_batch_size: int, max_delay: float = 0.0) -> None:
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size must be at least 1, not {max_batch_size}")
        self.max_batch_size = max_batch_size
        self.max_delay = max_delay
        # Keyed by identity, so that a job leaves the middle of its line at no cost. No line is ever empty.
        self._lines: dict[Shape, OrderedDict[int, Job]] = {}

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def put(self, job: Job) -> None:
        """Line up at the end."""
        self._lines.setdefault(job.shape, OrderedDict())[id(job)] = job

    def put_back(self, job: Job) -> None:
        """Line up at the head, after having been taken in vain."""
        self.put(job)
        self._lines[job.shape].move_to_end(id(job), last=False)

    def discard(self, job: Job) -> None:
        """Leave the queue, as when the caller has gone. A job that is not in it is ignored."""
        line = self._lines.get(job.shape)
        if line is not None and line.pop(id(job), None) is not None and not line:
            del self._lines[job.shape]

    def take(self, now: float) -> list[Job]:
        """Remove and return the batch to run now, oldest first: from the line whose head has waited longest.

        Empty if there is none, or if every line is still held back for company (see `next_ready`).
        """
        ready = [line for line in self._lines.values() if self._ready_at(line) <= now]
        if not ready:
            return []
        line = min(ready, key=lambda line: _head(line).arrived)
        shape = _head(line).shape
        batch = [line.popitem(last=False)[1] for _ in range(min(len(line), self.max_batch_size))]
        if not line:
            del self._lines[shape]
        return batch

    def next_ready(self) -> float | None:
        """When `take` will first return a batch, if nothing else arrives; None while the queue is empty."""
        return min((self._ready_at(line) for line in self._lines.values()), default=None)

    def _ready_at(self, line: OrderedDict[int, Job]) -> float:
        arrived = _head(line).arrived
        return arrived if len(line) >= self.max_batch_size else arrived + self.max_delay


def _head(line: OrderedDict[int, Job]) -> Job:
    return next(iter(line.values()))
