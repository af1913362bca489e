"""Memory of the host and of devices: how much is left, how to give it back, and which errors mean that it ran out."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from model.inference.memory import is_out_of_memory as is_out_of_memory
from model.inference.memory import trim_host_memory as trim_host_memory

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def available_memory(cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO) -> int | None:
    """Bytes that are free, or that the system can free, here and within a container's limit; None where it is unknown.

    Args:
        cgroup: where the system shows the limit, by version 2.
        meminfo: where it shows the machine's memory.
    """
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(meminfo), re.MULTILINE)
    machine = int(found[1]) * 1024 if found else None
    limit, used = _text(cgroup / "memory.max").strip(), _text(cgroup / "memory.current").strip()
    if not (limit.isdecimal() and used.isdecimal()):
        return machine
    files = re.search(r"^inactive_file (\d+)$", _text(cgroup / "memory.stat"), re.MULTILINE)  # freed when asked for
    container = max(0, int(limit) - int(used) + (int(files[1]) if files else 0))
    return container if machine is None else min(machine, container)


def release_memory(device: str) -> None:
    """Give back what is kept of a device's memory, and of the host's, for later."""
    trim_host_memory()
    if device.startswith("cuda") and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
