"""Work beside requests that may take long, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# CPython's own interval is 5 ms: for so long a thread that builds a model keeps one that answers from the interpreter.
_SWITCH_INTERVAL_S = 0.0005


async def in_background(work: Callable[[], T], *, name: str, is_heavy: bool = True) -> T:
    """The result of work that blocks. The end of the process does not wait for it.

    Args:
        work: runs in a thread of its own. Its priority is that of the others: with a lower one, other threads would
            wait for the interpreter while it holds it and has no core.
        name: of the thread.
        is_heavy: whether it needs the interpreter for long, and so has all threads take shorter turns in it.

    Raises:
        Exception: whatever `work` raises.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def tell(set_outcome: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed: the process is ending
            loop.call_soon_threadsafe(lambda: None if outcome.done() else set_outcome())

    def run() -> None:
        try:
            with _short_turns if is_heavy else contextlib.nullcontext():
                result = work()
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            failure = error  # the name `error` ends with this block
            tell(lambda: outcome.set_exception(failure))
        else:
            tell(lambda: outcome.set_result(result))

    threading.Thread(target=run, name=name, daemon=True).start()
    return await outcome


def works_in_background() -> bool:
    """Whether heavy work goes on, also after the event loop has ended."""
    return _short_turns.within


class _ShortTurns:
    """Has the threads of this process take shorter turns in the interpreter, as long as somebody is within."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = 0
        self._usual = 0.0

    @property
    def within(self) -> bool:
        return self._within > 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._within:
                self._usual = sys.getswitchinterval()
                sys.setswitchinterval(_SWITCH_INTERVAL_S)
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                sys.setswitchinterval(self._usual)


_short_turns = _ShortTurns()  # one, as the interval is the process's
