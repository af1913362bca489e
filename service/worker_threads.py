"""Threads that work for the event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class InThread(Protocol):
    """What runs work beside the event loop."""

    def __call__(self, work: Callable[[], T]) -> asyncio.Future[T]: ...


class _Piece(asyncio.Future[T]):
    """Of work: what is to be done, until it is begun or nobody waits for it any more."""

    work: Callable[[], T] | None

    def cancel(self, msg: Any = None) -> bool:
        self.work = None
        return super().cancel(msg)


class WorkerThreads:
    """A pool for short pieces of work. Lives on the event loop.

    What `loop.run_in_executor` does in less time, as it wakes nobody in vain: the loop once for all that is done by the
    time it looks, and a second thread only when the first has come and there is more. The threads do not keep the
    process from ending.

    Args:
        count: of threads; they start with the first piece of work.
        name: theirs begin so.
    """

    def __init__(self, count: int, name: str) -> None:
        self._threads = [
            threading.Thread(target=self._live, name=f"{name}-{number}", daemon=True) for number in range(count)
        ]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        # What follows is shared between threads: each step on it is atomic.
        self._waiting: deque[_Piece[Any]] = deque()
        self._idle: list[threading.Lock] = []  # one for each thread that sleeps: released, it wakes
        self._waking = False  # whether a thread has been woken and has not come to work yet
        self._done: deque[tuple[_Piece[Any], Any, BaseException | None]] = deque()
        self._told = False  # whether the loop will look at what is done

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """The result of `work`, which is left out, and let go at once, if the future is cancelled before its turn.

        Raises:
            RuntimeError: the pool is closed.
        """
        if self._closed:
            raise RuntimeError("the threads have been told to end")
        if self._loop is None:
            loop = asyncio.get_running_loop()
            for thread in self._threads:
                if thread.ident is None:
                    thread.start()
            self._loop = loop
        piece: _Piece[T] = _Piece(loop=self._loop)
        piece.work = work
        self._waiting.append(piece)
        if not self._waking:
            self._waking = True
            # Not at once: the thread could do nothing as long as the loop holds the interpreter.
            self._loop.call_soon(self._wake_one)
        return piece

    def close(self) -> None:
        """End as soon as the work in hand is done; cancel what waits."""
        self._closed = True
        while self._waiting:
            with suppress(IndexError):  # a thread was faster
                self._waiting.popleft().cancel()
        while self._idle:
            self._wake_one()

    def ended(self, timeout_s: float) -> bool:
        """Wait for the end, after `close`, and tell whether it has come. Blocks."""
        give_up = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(give_up - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def _wake_one(self) -> None:
        try:
            asleep = self._idle.pop()
        except IndexError:
            self._waking = False  # all are at work, and look for more when they have done it
        else:
            self._waking = True
            asleep.release()

    def _live(self) -> None:
        """Runs in each thread."""
        asleep = threading.Lock()
        asleep.acquire()
        while not self._closed:
            try:
                piece = self._waiting.popleft()
            except IndexError:
                self._sleep(asleep)
                continue
            self._waking = False  # before looking for more: what comes from now on wakes another
            if self._waiting:
                self._wake_one()
            work, piece.work = piece.work, None
            if work is not None:
                self._do(piece, work)
            del piece, work  # they hold pictures

    def _sleep(self, asleep: threading.Lock) -> None:
        self._waking = False
        self._idle.append(asleep)
        if self._waiting or self._closed:  # it came between the look and the bed
            with suppress(ValueError):  # and has woken this one already
                self._idle.remove(asleep)
                return
        asleep.acquire()

    def _do(self, piece: _Piece[Any], work: Callable[[], Any]) -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = work()
        except StopIteration:  # no future can hold one
            error = RuntimeError("the work has raised StopIteration")
        except BaseException as raised:  # noqa: BLE001 - raised again where it is waited for
            error = raised
        self._done.append((piece, result, error))
        del piece, work, result, error  # a failure holds this frame: else only the collector would free what they hold
        if not self._told:
            self._told = True
            assert self._loop is not None, "it was there when the threads began to work"
            with suppress(RuntimeError):  # the loop has been closed: nobody waits
                self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        """Runs on the event loop."""
        self._told = False  # before looking: what is done from now on is told of anew
        while self._done:
            piece, result, error = self._done.popleft()
            if piece.done():
                continue
            if error is None:
                piece.set_result(result)
            else:
                piece.set_exception(error)
