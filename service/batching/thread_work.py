"""Work in decoding threads, for callers on the event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Callable
from typing import TypeVar

from service.batching.decode_threads import Continuation, DecodeThreads
from service.batching.fairness import Caller

T = TypeVar("T")


def run_in_threads(
    threads: DecodeThreads,
    work: Callable[[], T | Continuation],
    *,
    on_end: Callable[[], None],
    caller: Caller,
    cost: int,
) -> asyncio.Future[T]:
    """Run work that blocks in a decoding thread. Work that is cancelled before its turn is freed at once.

    Args:
        work: see `DecodeThreads.submit`, as are `caller` and `cost`.
        on_end: called on the event loop when the work is over or will never begin. After a cancellation that may be
            later than the end of the future that this returns: a thread cannot be interrupted.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(done: concurrent.futures.Future[T]) -> None:
        on_end()  # before the caller goes on: what is held is released by then
        if future.done():
            return
        try:
            future.set_result(done.result())
        except concurrent.futures.CancelledError:
            future.cancel()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the caller
            future.set_exception(error)

    def announce(done: concurrent.futures.Future[T]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed: the process is ending
            loop.call_soon_threadsafe(finish, done)

    # One call of the loop for both, where `asyncio.wrap_future` would make another: each wakes it up.
    running = threads.submit(work, caller, cost)
    running.add_done_callback(announce)
    future.add_done_callback(lambda ended: ended.cancelled() and running.cancel())
    return future
