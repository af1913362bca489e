"""Which pictures run next, together. Pure: no clock, no asyncio, no threads.

Pictures share a batch only with pictures of the same padded shape, because padding is what lets neighbours change a
picture's detections. So there is a line for each shape. The picture that runs next is found in two steps. First its
priority, which is that of the oldest picture with the earliest turn:

    turn = arrived + head_start * priority        (high 0, normal 1, low 2)

A priority goes before the next lower one, unless that one's oldest picture has waited a head start longer. So none
starves: no picture is ever overtaken by one of another priority that arrives more than two head starts after it. Within
a priority callers take turns, see `fairness`, and the pictures of one caller keep their order.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import OrderedDict
from collections.abc import Sequence
from enum import IntEnum
from typing import Generic, NamedTuple, Protocol, TypeVar

from service.batching.fairness import Caller, Turns

Shape = tuple[int, int]


class Priority(IntEnum):
    """Lower goes first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


PRIORITIES = {priority.name.lower(): priority for priority in Priority}


class Queued(Protocol):
    """What the queue needs to know of a picture."""

    @property
    def shape(self) -> Shape: ...
    @property
    def priority(self) -> Priority: ...
    @property
    def caller(self) -> Caller: ...
    @property
    def arrived(self) -> float:
        """Seconds on any clock, the same for all pictures."""
        ...


Waiting = TypeVar("Waiting", bound=Queued)


_PUT_BACK = -1  # the turn of a picture that was taken and not run: before all others


class _Place(NamedTuple):
    """A picture's place among those of its shape and priority."""

    turn: int
    number: int  # in the order of arrival

    @property
    def was_put_back(self) -> bool:
        return self.turn == _PUT_BACK


class _File(Generic[Waiting]):
    """The pictures of a shape and a priority: in the order of arrival, and by their places."""

    def __init__(self) -> None:
        self.pictures: OrderedDict[int, tuple[_Place, Waiting]] = (
            OrderedDict()
        )  # by identity: a picture may leave from the middle
        self._places: list[tuple[_Place, int]] = []

    def put(self, picture: Waiting, place: _Place) -> None:
        self.pictures[id(picture)] = place, picture
        insort(self._places, (place, id(picture)))
        if place.was_put_back:
            self.pictures.move_to_end(id(picture), last=False)

    def pop(self, picture: Waiting) -> _Place | None:
        """Remove a picture and tell its place, if it is here."""
        if (found := self.pictures.pop(id(picture), None)) is None:
            return None
        self._places.remove((found[0], id(picture)))
        return found[0]

    @property
    def oldest(self) -> float:
        """When the one that has waited longest arrived."""
        return next(iter(self.pictures.values()))[1].arrived

    @property
    def first(self) -> tuple[_Place, Waiting]:
        """The one whose turn it is."""
        return self.pictures[self._places[0][1]]


class BatchQueue(Generic[Waiting]):
    """Lines of pictures by shape.

    Args:
        max_batch_size: most pictures in a batch.
        max_delay: seconds that the oldest picture of an unfilled batch is held back for company; 0 for not at all.
        head_start: seconds that each step of priority is worth; 0 makes all equal.
    """

    def __init__(self, *, max_batch_size: int, max_delay: float = 0.0, head_start: float = 10.0) -> None:
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size must be at least 1, not {max_batch_size}")
        self.max_batch_size = max_batch_size
        self.max_delay = max_delay
        self.head_start = head_start
        # A file of a line for each priority. Nothing in here is ever empty.
        self._lines: dict[Shape, dict[Priority, _File[Waiting]]] = {}
        self._turns = {priority: Turns() for priority in Priority}
        self._arrivals = 0

    def __len__(self) -> int:
        return sum(_length(line) for line in self._lines.values())

    def put(self, picture: Waiting) -> None:
        """Line up behind this caller's pictures of the same priority, and in turn with other callers'."""
        self._arrivals += 1
        self._put(picture, _Place(self._turns[picture.priority].enter(picture.caller), self._arrivals))

    def put_back(self, picture: Waiting) -> None:
        """Put a picture that was taken but not run back at the head of its priority."""
        self._arrivals += 1
        self._turns[picture.priority].enter(picture.caller)
        self._put(picture, _Place(_PUT_BACK, -self._arrivals))

    def discard(self, picture: Waiting) -> None:
        """Leave the queue, as when the caller has gone. A picture that is not in it is ignored."""
        if self._remove(picture) is not None:
            self._turns[picture.priority].leave(picture.caller)

    def take_all(self) -> list[Waiting]:
        """Remove and return every picture, in the order of arrival."""
        files = [file for line in self._lines.values() for file in line.values()]
        waiting = sorted(
            (picture for file in files for _, picture in file.pictures.values()), key=lambda picture: picture.arrived
        )
        for picture in waiting:
            self.discard(picture)
        return waiting

    def take(self, now: float, *, at_most: int | None = None, hold_until: float = -math.inf) -> list[Waiting]:
        """Remove and return the batch to run now, from the line that holds the picture whose turn it is.

        Empty if there is none, or if every line is still held back for company (see `next_ready`).

        Args:
            now: on the pictures' clock.
            at_most: a bound on the batch below `max_batch_size`.
            hold_until: when a line is ready that does not fill a batch, on the pictures' clock.
        """
        size = self._size(at_most)
        ready = [line for line in self._lines.values() if self._ready_at(line, size, hold_until) <= now]
        if not ready:
            return []
        line = self._lines[self._first(ready).shape]
        batch: list[Waiting] = []
        while line and len(batch) < size:
            batch.append(picture := self._first([line]))
            place = self._remove(picture)
            assert place is not None, "it is in the line"
            self._turns[picture.priority].leave(picture.caller, None if place.was_put_back else place.turn)
        return batch

    def next_ready(self, *, at_most: int | None = None, hold_until: float = -math.inf) -> float | None:
        """When `take` will first return a batch, if nothing else arrives; None while the queue is empty."""
        size = self._size(at_most)
        return min((self._ready_at(line, size, hold_until) for line in self._lines.values()), default=None)

    def _put(self, picture: Waiting, place: _Place) -> None:
        self._lines.setdefault(picture.shape, {}).setdefault(picture.priority, _File()).put(picture, place)

    def _remove(self, picture: Waiting) -> _Place | None:
        line = self._lines.get(picture.shape, {})
        file = line.get(picture.priority)
        place = None if file is None else file.pop(picture)
        if file is not None and not file.pictures:
            del line[picture.priority]
            if not line:
                del self._lines[picture.shape]
        return place

    def _size(self, at_most: int | None) -> int:
        return self.max_batch_size if at_most is None else min(at_most, self.max_batch_size)

    def _ready_at(self, line: dict[Priority, _File[Waiting]], size: int, hold_until: float) -> float:
        oldest = min(file.oldest for file in line.values())
        return oldest if _length(line) >= size else max(oldest + self.max_delay, hold_until)

    def _first(self, lines: Sequence[dict[Priority, _File[Waiting]]]) -> Waiting:
        """The picture whose turn it is, of these lines."""
        files = [(priority, file) for line in lines for priority, file in line.items()]
        turn = min([self._turn(priority, file) for priority, file in files])
        chosen = turn[1]
        return min([file.first for priority, file in files if priority is chosen], key=lambda first: first[0])[1]

    def _turn(self, priority: Priority, file: _File[Waiting]) -> tuple[float, Priority, float]:
        # The arrival once more: beside a head start, a difference that is too small for the sum is lost.
        return file.oldest + self.head_start * priority, priority, file.oldest


def _length(line: dict[Priority, _File[Waiting]]) -> int:
    return sum([len(file.pictures) for file in line.values()])
