"""Which images run next, together. Pure: no clock, no asyncio, no threads.

Images share a batch only with images of the same padded shape, because padding is what lets neighbours change an
image's detections. So there is a line for each shape. Within a line, and between lines, jobs run by their turn:

    turn = arrived + head_start * priority        (high 0, normal 1, low 2)

A job goes before one of the next lower priority, unless that one has waited a head start longer. So no job starves:
none is ever overtaken by one that arrives more than two head starts after it, however many of those there are.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from enum import IntEnum
from typing import Generic, Protocol, TypeVar

Shape = tuple[int, int]


class Priority(IntEnum):
    """Lower goes first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


PRIORITIES = {priority.name.lower(): priority for priority in Priority}


class Queued(Protocol):
    """What the queue needs to know of a job."""

    @property
    def shape(self) -> Shape: ...
    @property
    def priority(self) -> Priority: ...
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
        head_start: seconds that each step of priority is worth; 0 makes all equal.
    """

    def __init__(self, *, max_batch_size: int, max_delay: float = 0.0, head_start: float = 10.0) -> None:
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size must be at least 1, not {max_batch_size}")
        self.max_batch_size = max_batch_size
        self.max_delay = max_delay
        self.head_start = head_start
        # One file of a line for each priority, first in first out: its head has its earliest turn. Keyed by identity,
        # so that a job leaves the middle at no cost. Nothing in here is ever empty.
        self._lines: dict[Shape, dict[Priority, OrderedDict[int, Job]]] = {}

    def __len__(self) -> int:
        return sum(_length(line) for line in self._lines.values())

    def put(self, job: Job) -> None:
        """Line up at the end of those of its priority."""
        self._lines.setdefault(job.shape, {}).setdefault(job.priority, OrderedDict())[id(job)] = job

    def put_back(self, job: Job) -> None:
        """Put a job that was taken but not run back at the head of its priority."""
        self.put(job)
        self._lines[job.shape][job.priority].move_to_end(id(job), last=False)

    def discard(self, job: Job) -> None:
        """Leave the queue, as when the caller has gone. A job that is not in it is ignored."""
        line = self._lines.get(job.shape, {})
        file = line.get(job.priority, OrderedDict())
        if file.pop(id(job), None) is not None and not file:
            del line[job.priority]
            if not line:
                del self._lines[job.shape]

    def take_all(self) -> list[Job]:
        """Remove and return every job, by turn."""
        waiting = [job for line in self._lines.values() for file in line.values() for job in file.values()]
        self._lines.clear()
        return sorted(waiting, key=self._turn)

    def take(self, now: float, *, at_most: int | None = None, hold_until: float = -math.inf) -> list[Job]:
        """Remove and return the batch to run now, by turn: from the line that holds the earliest.

        Empty if there is none, or if every line is still held back for company (see `next_ready`).

        Args:
            now: on the jobs' clock.
            at_most: a bound on the batch below `max_batch_size`.
            hold_until: when a line is ready that does not fill a batch, on the jobs' clock.
        """
        size = self._size(at_most)
        ready = [line for line in self._lines.values() if self._ready_at(line, size, hold_until) <= now]
        if not ready:
            return []
        line = min(ready, key=lambda line: self._turn(self._first(line)))
        batch: list[Job] = []
        while line and len(batch) < size:
            batch.append(self._first(line))
            self.discard(batch[-1])
        return batch

    def next_ready(self, *, at_most: int | None = None, hold_until: float = -math.inf) -> float | None:
        """When `take` will first return a batch, if nothing else arrives; None while the queue is empty."""
        size = self._size(at_most)
        return min((self._ready_at(line, size, hold_until) for line in self._lines.values()), default=None)

    def _size(self, at_most: int | None) -> int:
        return self.max_batch_size if at_most is None else min(at_most, self.max_batch_size)

    def _ready_at(self, line: dict[Priority, OrderedDict[int, Job]], size: int, hold_until: float) -> float:
        oldest = min(_head(file).arrived for file in line.values())
        return oldest if _length(line) >= size else max(oldest + self.max_delay, hold_until)

    def _first(self, line: dict[Priority, OrderedDict[int, Job]]) -> Job:
        return min(map(_head, line.values()), key=self._turn)

    def _turn(self, job: Job) -> tuple[float, Priority, float]:
        # The arrival once more: beside a head start, a difference that is too small for the sum is lost.
        return job.arrived + self.head_start * job.priority, job.priority, job.arrived


def _head(file: OrderedDict[int, Job]) -> Job:
    return next(iter(file.values()))


def _length(line: dict[Priority, OrderedDict[int, Job]]) -> int:
    return sum(map(len, line.values()))
