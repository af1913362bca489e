"""How a device, or the host, says that its memory is full."""

from __future__ import annotations

import torch

# How the CPU's allocator, the CUDA driver, cuDNN and cuBLAS say it where torch raises a plain RuntimeError.
_WORDS = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: Exception) -> bool:
    """Whether it says that a device's memory, or the host's, does not hold the batch."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error) for words in _WORDS if isinstance(error, RuntimeError)
    )
