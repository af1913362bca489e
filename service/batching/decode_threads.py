"""Threads for work that blocks: decoding above all. Callers take turns, and work that overruns is counted."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from service.batching.fairness import Caller, Rounds

T = TypeVar("T")


@dataclass(order=True, slots=True)
class _Piece:
    """A piece of work and the future of its result. Of two, the one of the earlier round goes first."""

    round: int
    number: int
    caller: Caller = field(compare=False)
    work: list[Callable[[], Any]] = field(compare=False)  # empty when it is begun or given up
    result: Future[Any] = field(compare=False)

    def run(self) -> None:
        try:
            value = self.work.pop()()  # without a name, which the error's traceback would hold
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the one who waits for it
            self.result.set_exception(error)
            del self  # the error's traceback holds this frame, and so would hold itself
        else:
            self.result.set_result(value)


class DecodeThreads:
    """Runs pieces of work in a few threads, in the order of `Rounds`.

    Args:
        count: threads.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._executor = ThreadPoolExecutor(count, "decode")
        self._rounds = Rounds()
        self._numbers = itertools.count()
        self._waiting: list[_Piece] = []  # a heap
        self._running: dict[int, float] = {}  # the number of each piece that runs, and when it began
        self._lock = threading.Lock()

    def submit(self, work: Callable[[], T], caller: Caller = None) -> Future[T]:
        """Run work in its turn. Work whose future is cancelled before that is freed at once, and never runs."""
        result: Future[T] = Future()
        with self._lock:
            piece = _Piece(self._rounds.enter(caller), next(self._numbers), caller, [work], result)
            heapq.heappush(self._waiting, piece)
        waiting = piece.work  # not the piece: it holds the result, which holds this callback
        result.add_done_callback(lambda _: waiting.clear())
        self._executor.submit(self._run_next)  # one turn for each piece, whichever is next then
        return result

    def overrunning(self, seconds: float) -> int:
        """How many pieces have been running for longer than this."""
        since = time.monotonic() - seconds
        with self._lock:
            return sum(began <= since for began in self._running.values())

    def shutdown(self, *, wait: bool, cancel: bool = False) -> None:
        """Take no more work; give up what waits, with `cancel`; block until what runs is over, with `wait`."""
        if cancel:
            with self._lock:
                waiting = list(self._waiting)
            for piece in waiting:
                piece.result.cancel()
        self._executor.shutdown(wait=wait, cancel_futures=cancel)

    def _run_next(self) -> None:
        with self._lock:
            piece = heapq.heappop(self._waiting)
            begins = piece.result.set_running_or_notify_cancel()
            self._rounds.leave(piece.caller, piece.round if begins else None)
            if not begins:
                return
            self._running[piece.number] = time.monotonic()
        try:
            piece.run()
        finally:
            with self._lock:
                del self._running[piece.number]
            del piece  # the traceback of a failure holds this frame, too, and the piece holds the failure
