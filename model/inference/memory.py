"""Memory of a device and of the host: how they say that it is full, and how the host gets it back."""

from __future__ import annotations

import ctypes
import sys

import torch

# How the CPU's allocator, the CUDA driver, cuDNN and cuBLAS say it where torch raises a plain RuntimeError.
_WORDS = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: Exception) -> bool:
    """Whether it says that a device's memory, or the host's, does not hold the batch."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error) for words in _WORDS if isinstance(error, RuntimeError)
    )


def trim_host_memory() -> None:
    """Return to the system what the C library keeps of freed memory, where it offers that.

    glibc keeps the holes that large pictures leave, so that a process looks as if it leaked.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
