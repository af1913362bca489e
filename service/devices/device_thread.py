"""A thread that works for the event loop, and whose end does not go unnoticed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar, cast

from service.threads import start_daemon

T = TypeVar("T")
logger = logging.getLogger(__name__)


class ThreadEndedError(Exception):
    """The thread ended before it had done its work."""


class WorkTimeoutError(Exception):
    """The work is not done in time, and may never be."""


class DeviceThread:
    """Does one piece of work at a time.

    Why not an executor: that one never learns that its thread has died, and keeps the process from ending while its
    thread hangs. This thread is a daemon: the end of the process does not wait for it.

    Args:
        name: of the thread. Make it on the event loop that it is to work for.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._inbox: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        # What came of the work: its result, and what it raised.
        self._outcome: asyncio.Future[tuple[Any, Exception | None]] | None = None
        self._ended = False
        self._thread = start_daemon(self._live, name=name)

    @property
    def alive(self) -> bool:
        return not self._ended and self._thread.is_alive()

    @property
    def busy(self) -> bool:
        """Whether work has begun and not ended."""
        return self._outcome is not None and self.alive

    async def run(self, work: Callable[[], T], *, timeout_s: float) -> T:
        """The result of `work`. The thread finishes it also when the caller is cancelled or no longer waits.

        Raises:
            WorkTimeoutError: it takes longer than that; the thread must not be used again.
            ThreadEndedError: the thread has died on it.
            Exception: whatever `work` raises.
        """
        assert self._outcome is None, "two pieces of work at once: this is a bug"
        outcome = self._outcome = self._loop.create_future()
        self._inbox.put(work)
        if not self.alive:
            self._finish(None, ThreadEndedError("the thread had ended"))
        expiry = self._loop.call_later(timeout_s, _expire, outcome)
        try:
            result, error = await outcome
        finally:
            expiry.cancel()
        try:
            if error is not None:
                raise error
            return cast(T, result)
        finally:
            del work, outcome, error  # a failure holds this frame: else only the collector would free the pictures

    def retire(self) -> None:
        """End as soon as the current work has ended, if it ever does."""
        self._inbox.put(None)

    def _live(self) -> None:
        """Runs in the thread."""
        ended: Exception = ThreadEndedError("the thread has ended")
        try:
            while (work := self._inbox.get()) is not None:
                try:
                    result, error = work(), None
                except Exception as raised:  # noqa: BLE001 - raised again where it is waited for
                    result, error = None, raised
                self._tell(result, error)
                del work, result, error  # they hold pictures
        except BaseException as fatal:
            logger.exception("%s has been killed", threading.current_thread().name)
            ended = ThreadEndedError(f"the thread was killed by {type(fatal).__name__}")
        finally:
            self._ended = True
            self._tell(None, ended)

    def _tell(self, result: Any, error: Exception | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            self._loop.call_soon_threadsafe(self._finish, result, error)

    def _finish(self, result: Any, error: Exception | None) -> None:
        """Runs on the event loop."""
        outcome, self._outcome = self._outcome, None
        if outcome is not None and not outcome.done():
            outcome.set_result((result, error))


def _expire(outcome: asyncio.Future[Any]) -> None:
    if not outcome.done():
        outcome.set_exception(WorkTimeoutError())
