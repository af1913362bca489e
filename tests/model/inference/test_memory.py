from __future__ import annotations

import pytest
import torch

from model.inference.memory import is_out_of_memory, trim_host_memory


def test_what_says_that_memory_ran_out() -> None:
    with pytest.raises(RuntimeError) as torchs_own:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(torchs_own.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_trimming_keeps_what_is_in_use() -> None:
    kept = torch.arange(1 << 20)
    _ = [torch.ones(1 << 20) for _ in range(8)]
    trim_host_memory()
    assert kept.equal(torch.arange(1 << 20))
