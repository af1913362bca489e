"""Makes a piece of work on a GPU repeatable as one launch: a CUDA graph."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

_PATIENCE_S = 30

# Runs the work it was made for again, on the inputs as they are then, into the tensor that comes with it.
Replay = Callable[[], object]


class Capture(Protocol):
    """Makes work repeatable."""

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Replay, Tensor]: ...

    def forget(self) -> None: ...


class NotCapturedError(Exception):
    """Another device of this process hangs in the middle of a capture."""


class CUDACapture:
    """Captures CUDA graphs of one device that share one pool of memory: they never run at the same time."""

    _one_at_a_time = threading.Lock()  # in a process: torch's own restriction

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """Run `work` once, to compile and choose what it needs, and then record it.

        Raises:
            NotCapturedError: nothing can be recorded in this process now.
        """
        if not self._one_at_a_time.acquire(timeout=_PATIENCE_S):
            raise NotCapturedError("another capture has not ended")
        try:
            with torch.cuda.device(self._device):
                return self._captured(work)
        finally:
            self._one_at_a_time.release()

    def forget(self) -> None:
        """Take a new pool for the next graph: one that no graph uses any more must not be used again."""
        self._pool = None

    def _captured(self, work: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        # One stream of our own: torch's default for captures is on whichever device came first, and libraries keep a
        # workspace for each stream.
        stream = self._stream = self._stream or torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        # A pool in which a capture has failed is of no more use.
        pool, self._pool = self._pool or torch.cuda.graph_pool_handle(), None
        graph = torch.cuda.CUDAGraph()
        # Other threads go on using the device: a picture may be on its way to it.
        with _no_collection(), torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            rows = work()
        self._pool = pool
        return graph.replay, rows


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector still: no graph may be freed in the middle of a capture.

    To collect before each capture would do as well, but takes a fifth of a second with torch loaded.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
