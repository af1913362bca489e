"""This process among those that `torchrun` started together; alone without it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.inference.precision import cpu_has_bfloat16


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bf16 by itself. Where torch imitates it, a CPU takes some fifty times as long."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_has_bfloat16()


class DeviceError(ValueError):
    """There is no such device here. The message names those there are."""


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

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def any(self, mine: bool) -> bool:
        """Whether it is true in one of the processes."""
        if self.count == 1:
            return mine
        flag = torch.tensor(int(mine), device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    def wait(self) -> None:
        if self.count > 1:
            dist.barrier()


@contextmanager
def joined_processes(device_name: str) -> Iterator[Processes]:
    """Join the others, by the environment that `torchrun` sets, and leave them at the end.

    Args:
        device_name: "auto" for the GPU of the local rank if there is one, "cpu", "cuda" or "cuda:1".

    Raises:
        DeviceError: there is no such device.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = find_device(device_name, os.environ.get("LOCAL_RANK", "0"))
    threads = torch.get_num_threads()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_num_threads(1)  # else each decoding thread would keep threads on all cores
    try:
        if count == 1:
            yield Processes(rank=0, count=1, device=device)
            return
        # The others wait while the first evaluates, which may take long.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
        try:
            yield Processes(rank=rank, count=count, device=device)
        finally:
            dist.destroy_process_group()
    finally:
        torch.set_num_threads(threads)


def find_device(name: str, local_rank: str = "0") -> torch.device:
    """The device that a `--device` argument means.

    Raises:
        DeviceError: there is no such device.
    """
    known = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name == "auto":
        name = "cuda" if len(known) > 1 else "cpu"
    wanted = f"cuda:{local_rank}" if name == "cuda" else name
    if wanted not in known:
        raise DeviceError(f"there is no device {wanted!r} here; there is {', '.join(known)}. Choose with --device")
    return torch.device(wanted)
