"""Threads and their priority, which in Linux each thread has for itself, and takes from the thread that starts it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

# Its thread begins with the first daemon, or before a thread gets a lower priority: so it has the usual one.
_starter = ThreadPoolExecutor(1, thread_name_prefix="starter")


def start_daemon(run: Callable[[], None], *, name: str) -> threading.Thread:
    """Start a thread of usual priority, also where the calling one has a lower priority by now.

    Args:
        run: what the thread does. The end of the process does not wait for it.
        name: of the thread.
    """
    thread = threading.Thread(target=run, name=name, daemon=True)
    _starter.submit(thread.start).result()
    return thread


def lower_priority(thread: threading.Thread, by: int) -> None:
    """Let other threads run before this one, and before those that it starts from now on. Only root can undo it.

    Args:
        thread: one that runs.
        by: as `nice` counts. With 10 it has a tenth of the processor time of another one where they compete for a core.
    """
    if sys.platform == "linux" and thread.native_id is not None:
        _starter.submit(lambda: None).result()
        with suppress(OSError):  # a sandbox may deny it; all works without, too
            lower = min(os.getpriority(os.PRIO_PROCESS, thread.native_id) + by, 19)
            os.setpriority(os.PRIO_PROCESS, thread.native_id, lower)
