"""This process among those that `torchrun` started together; alone without it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The rank of this process, how many there are, and the device that is its own."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """The first one reports, evaluates and writes files."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        if self.count > 1:
            dist.all_reduce(values)
            values /= self.count
        return values

    def wait(self) -> None:
        if self.count > 1:
            dist.barrier()


@contextmanager
def joined_processes(device_name: str) -> Iterator[Processes]:
    """Join the others, by the environment that `torchrun` sets, and leave them at the end.

    Args:
        device_name: "auto" for the GPU of the local rank if there is one, "cpu", "cuda" or "cuda:1".
    """
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if device_name == "auto":
        device_name = "cuda" if torch.cuda.is_available() else "cpu"
    if device_name == "cuda":
        device_name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device = torch.device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if count == 1:
        yield Processes(rank=0, count=1, device=device)
        return
    # The others wait while the first evaluates, which may take long.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        yield Processes(rank=rank, count=count, device=device)
    finally:
        dist.destroy_process_group()
