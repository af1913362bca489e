"""The path of a picture to a GPU: decoded into page-locked memory, then one asynchronous copy.

A GPU copies without the CPU only from memory that the system cannot move: page-locked memory. Locking pages takes
milliseconds, so it is done once, at start-up, for one buffer. Decoders write into slots of it.

A slot lives as long as something refers to its pixels: the request, the batch, or a copy that is not over. No code
frees it by hand, so it is freed exactly once however a request ends.
"""

from __future__ import annotations

import logging
import math
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from service.images.pictures import Pixels, pageable

logger = logging.getLogger(__name__)

_ALIGNMENT = 256  # bytes: a cache line and a vector of the widest kind


class _Slot:
    """Part of a buffer, as numpy reads it. The arrays made from it, and their views, keep it alive."""

    __slots__ = ("__array_interface__", "_buffer", "_span")

    def __init__(self, buffer: StagingBuffer, span: tuple[int, int], address: int, shape: tuple[int, int, int]) -> None:
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": shape, "data": (address, False)}
        self._span = span
        self._buffer = buffer

    def __del__(self) -> None:
        # No lock: this runs in any thread and at any moment, also within `StagingBuffer.allocate`.
        self._buffer._returned.append(self._span)


class StagingBuffer:
    """Gives slots of one buffer of page-locked memory, and pageable memory when it is full. For any thread.

    The first free span that is large enough is taken; spans that meet are joined.

    Args:
        memory: uint8 `[bytes]` on the host.
    """

    def __init__(self, memory: Tensor) -> None:
        self._memory = memory
        self._free = [(0, len(memory))] if len(memory) else []  # (start, end), by start; no two of them meet
        self._returned: deque[tuple[int, int]] = deque()  # spans of slots that have died
        self._lock = threading.Lock()

    def allocate(self, shape: tuple[int, int, int]) -> Pixels:
        """Memory for the pixels of a picture: an `Allocate` for `service.images`."""
        size = math.prod(shape)
        span = self._take(-(-size // _ALIGNMENT) * _ALIGNMENT) if size else None
        if span is None:
            return pageable(shape)
        return np.asarray(_Slot(self, span, self._memory.data_ptr() + span[0], shape))

    @property
    def free(self) -> list[tuple[int, int]]:
        """The spans that are free now, (start, end) in bytes."""
        with self._lock:
            self._take_back()
            return list(self._free)

    def _take(self, size: int) -> tuple[int, int] | None:
        with self._lock:
            self._take_back()
            for index, (start, end) in enumerate(self._free):
                if end - start >= size:
                    self._free[index : index + 1] = [(start + size, end)] if end - start > size else []
                    return start, start + size
        return None

    def _take_back(self) -> None:
        while self._returned:
            start, end = self._returned.popleft()
            after = bisect_left(self._free, (start, end))
            before = after
            if after < len(self._free) and self._free[after][0] == end:
                end, after = self._free[after][1], after + 1
            if before and self._free[before - 1][1] == start:
                start, before = self._free[before - 1][0], before - 1
            self._free[before:after] = [(start, end)]


@cache
def page_locked(size: int) -> StagingBuffer:
    """The process's buffer of `size` bytes; empty where the system does not give so much page-locked memory.

    It serves every GPU, and the detectors that are loaded again after a failure.
    """
    try:
        # No slot has the address of the whole: torch would note each copy from there, and wait for it when the process
        # ends, which aborts the process after a fault of the device.
        return StagingBuffer(torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)[_ALIGNMENT:])
    except RuntimeError as error:
        logger.warning("no %d MiB of page-locked memory, so pictures go to the GPU slower: %s", size >> 20, error)
        return StagingBuffer(torch.empty(0, dtype=torch.uint8, device="cpu"))


class Mark(Protocol):
    """A point in a stream of work, such as a `torch.cuda.Event`."""

    def query(self) -> bool:
        """Whether the work before it is done."""
        ...


class Uploads:
    """Copies pictures to a device while it works. For any thread.

    Args:
        copy: begins to copy a tensor to the device, and returns the copy.
        mark: marks the point behind the copies begun so far.
    """

    def __init__(self, copy: Callable[[Tensor], Tensor], mark: Callable[[], Mark]) -> None:
        self._copy = copy
        self._mark = mark
        self._begun: deque[tuple[Mark, Tensor]] = deque()  # copies that may not be over, and what they read
        self._lock = threading.Lock()

    def send(self, image: Tensor) -> Tensor:
        """The picture on its way to the device, `[3, H, W]` of any strides. Its memory is kept until it is there."""
        self.release_finished()
        rows = image.permute(1, 2, 0)
        # Rows as decoders leave them are copied in one piece; other strides keep their order.
        sent = self._copy(rows).permute(2, 0, 1) if rows.is_contiguous() else self._copy(image)
        with self._lock:  # so that the marks are in order
            self._begun.append((self._mark(), image))
        return sent

    def release_finished(self) -> None:
        """Release the memory of copies that are over."""
        with self._lock:
            while self._begun and self._begun[0][0].query():
                self._begun.popleft()


def cuda_uploads(device: torch.device, stream: Any) -> Uploads:
    """Copies on a stream of its own, a `torch.cuda.Stream`."""

    def copy(image: Tensor) -> Tensor:
        with torch.cuda.stream(stream):
            return image.to(device, non_blocking=True)

    return Uploads(copy, lambda: stream.record_event())
