"""Python in processes of its own."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

ROOT = Path(__file__).parents[2]


def script_environment() -> dict[str, str]:
    """The environment of child processes: they find the packages here, the tests' own among them."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def status_kib(pid: int, name: str) -> int:
    """A figure of /proc/PID/status: VmRSS is the resident memory, VmHWM the most of it, VmSize the address space."""
    return int(re.findall(name + r":\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0])


def niceness() -> int:
    """Of the calling thread, in Linux."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
