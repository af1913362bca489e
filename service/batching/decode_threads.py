"""Threads for work that blocks: decoding above all. Callers take turns, and work that overruns is counted.

How long a picture takes to decode is known when its header is read. So that work ends with a `Continuation`, which
takes a turn of its own by its cost.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from service.batching.fairness import Caller, Turns
from service.threads import lower_priority

T = TypeVar("T")

_WORK_OF_UNIT = 1 << 20
USUAL_COST = 2  # to read a header, and whatever tells no cost of its own
_LONGEST_SHORT = 16  # a quarter of a second, and what a camera's picture costs
_NICENESS = 10  # a tenth of the processor time of other threads, where they compete for a core


def cost_of(work: int) -> int:
    """The cost of a piece that takes as long as decoding so many pixels of a plain JPEG. 1 is about 15 ms of a core."""
    return 1 + work // _WORK_OF_UNIT


@dataclass(frozen=True, slots=True)
class Continuation:
    """The rest of a piece of work, whose result is that of the piece.

    Attributes:
        cost: relative to other pieces, at least 1.
        work: runs in its turn.
    """

    cost: int
    work: Callable[[], Any]


class _Result(Future[Any]):
    """The result of a piece of work, and the work until it is begun. To cancel frees the work, which never runs."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__()
        self._work = [work]
        self._is_wanted = True

    def take(self) -> Callable[[], Any] | None:
        """Remove the work, if it is neither begun nor given up."""
        with suppress(IndexError):
            return self._work.pop()
        return None

    def begin(self) -> bool:
        """Say that the work, or its continuation, runs now. False if it was given up."""
        if self.done() and not self.cancelled():
            return False  # given up after a part of it had run
        return self.running() or self.set_running_or_notify_cancel()

    def cancel(self) -> bool:
        self._is_wanted = False
        if self.take() is None:
            return super().cancel()
        if not super().cancel():  # a part of it has run, and the rest waited
            self.set_exception(CancelledError())
        return True

    def run(self) -> int | None:
        """Run the work. If there is a continuation, keep it as the work and return its cost."""
        if (work := self.take()) is None:
            return None
        try:
            value = work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the one who waits for it
            self.set_exception(error)
            del self, work  # the error's traceback holds this frame, and so would hold itself
            return None
        del work
        if isinstance(value, Continuation):
            self._work.append(value.work)
            if not self._is_wanted:  # cancelled while the first part ran
                self.cancel()
            return value.cost
        self.set_result(value)
        return None


@dataclass(order=True, slots=True)
class _Piece:
    """A piece of work. Of two, the one of the earlier turn goes first."""

    turn: int
    number: int
    caller: Caller = field(compare=False)
    result: _Result = field(compare=False)


class _Lane:
    """Threads that run pieces in the order of `Turns`."""

    def __init__(self, count: int, name: str, prepare: Callable[[], None] | None = None) -> None:
        self._executor = ThreadPoolExecutor(count, name, prepare)
        self._turns = Turns()
        self._numbers = itertools.count()
        self._waiting: list[_Piece] = []  # a heap
        self._running: dict[int, float] = {}  # the number of each piece that runs, and when it began
        self._lock = threading.Lock()

    def enter(self, caller: Caller, cost: int, result: _Result) -> None:
        """Queue a piece. `run_next` is to be called once for it, in one of the threads."""
        with self._lock:
            piece = _Piece(self._turns.enter(caller, cost), next(self._numbers), caller, result)
            heapq.heappush(self._waiting, piece)

    def in_thread(self, work: Callable[[], None]) -> None:
        """Run this in one of the threads."""
        self._executor.submit(work)

    def run_next(self) -> tuple[Caller, int, _Result] | None:
        """Run the piece whose turn it is. If it has a continuation, return whose it is, its cost and the result."""
        with self._lock:
            piece = heapq.heappop(self._waiting)
            begins = piece.result.begin()
            self._turns.leave(piece.caller, piece.turn if begins else None)
            if not begins:
                return None
            self._running[piece.number] = time.monotonic()
        try:
            cost = piece.result.run()
            return None if cost is None else (piece.caller, cost, piece.result)
        finally:
            with self._lock:
                del self._running[piece.number]
            del piece  # the traceback of a failure holds this frame, too, and the piece holds the failure

    def overrunning(self, since: float) -> int:
        with self._lock:
            return sum(began <= since for began in self._running.values())

    def cancel_waiting(self) -> None:
        with self._lock:
            waiting = list(self._waiting)
        for piece in waiting:
            piece.result.cancel()

    def shutdown(self, *, wait: bool, cancel: bool) -> None:
        self._executor.shutdown(wait=wait, cancel_futures=cancel)


class DecodeThreads:
    """Runs pieces of work in a few threads, in the order of `Turns`.

    Long pieces have as many threads of their own, with a tenth of the processor time of the others where they compete
    for a core: what is short never waits for them, and detection hardly slows down.

    Args:
        count: threads, of each of the two kinds.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._short = _Lane(count, "decode")
        self._long = _Lane(count, "decode-long", _run_after_others)

    def submit(self, work: Callable[[], T | Continuation], caller: Caller = None, cost: int = USUAL_COST) -> Future[T]:
        """Run work in its turn. Work whose future is cancelled before that is freed at once, and never runs.

        Args:
            work: returns the result, or a continuation, which is given up in the same way.
            caller: whose it is.
            cost: relative to other pieces, at least 1.
        """
        result = _Result(work)
        self._enter(self._lane(cost), caller, cost, result)
        return result

    def overrunning(self, seconds: float) -> int:
        """How many pieces have been running for longer than this."""
        since = time.monotonic() - seconds
        return self._short.overrunning(since) + self._long.overrunning(since)

    def all_overrun(self, seconds: float) -> bool:
        """Whether every thread for short pieces has been running one for longer than this: no other piece can begin."""
        return self._short.overrunning(time.monotonic() - seconds) == self.count

    def shutdown(self, *, wait: bool, cancel: bool = False) -> None:
        """Take no more work; give up what waits, with `cancel`; block until what runs is over, with `wait`."""
        lanes = self._short, self._long  # in this order: what is short may have a long continuation
        for lane in lanes:
            if cancel:
                lane.cancel_waiting()
            lane.shutdown(wait=wait, cancel=cancel)

    def _lane(self, cost: int) -> _Lane:
        return self._long if cost > _LONGEST_SHORT else self._short

    def _enter(self, lane: _Lane, caller: Caller, cost: int, result: _Result) -> None:
        lane.enter(caller, cost, result)
        lane.in_thread(partial(self._run_next, lane))  # once for each piece, whichever is next then

    def _run_next(self, lane: _Lane) -> None:
        """Run the piece whose turn it is. After one with a continuation in the same lane another, which may be that."""
        while (rest := lane.run_next()) is not None:
            if (other := self._lane(rest[1])) is not lane:
                self._enter(other, *rest)
                return
            lane.enter(*rest)
            del rest  # or it would hold the result while another piece runs


def _run_after_others() -> None:
    lower_priority(threading.current_thread(), _NICENESS)
