"""How many processor cores this process may use, and how many threads compute on them."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_SPINS = "2000"  # rounds of a loop; libgomp's own number is 300,000


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """The cores this process may run on, or fewer where a container's quota gives it less time; at least 1.

    More threads than that would share the quota and wait for each other.

    Args:
        cgroup: where the system shows the quota.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return cores if quota is None else max(1, min(cores, int(quota)))


def compute_threads(devices: list[str], cgroup: Path = _CGROUP) -> int:
    """Threads that torch computes with inside one operation.

    On a CPU: one per usable core, and at most OMP_NUM_THREADS, by which Ray, for example, shares the cores of a machine
    among its processes. It bounds the computing threads alone: FRCNN_DECODE_THREADS bounds those that decode.

    With GPUs alone: 1. What is left to the CPU are copies of single pictures, in many decoding threads. With OpenMP
    each of them would start as many threads again, which spin while they wait.

    Args:
        devices: names of the devices that the detectors run on.
        cgroup: see `usable_cores`.
    """
    if "cpu" not in devices:
        return 1
    cores = usable_cores(cgroup)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(asked)) if asked.isdecimal() and int(asked) > 0 else cores


def bound_spinning() -> None:
    """Let OpenMP's threads spin only briefly before they sleep, unless the environment says how they wait.

    Beside a second process they would spin on cores that its threads need: two detectors on the same cores then take
    three times as long and more. libgomp reads this once, when torch is loaded, so call it before that.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def _quota(cgroup: Path) -> float | None:
    """Cores' worth of time, by cgroup v2 or v1; None without a bound."""
    try:
        if (both := cgroup / "cpu.max").is_file():
            quota, period = both.read_text().split()
        else:
            quota, period = (
                (cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
            )
        return float(quota) / float(period) if quota != "max" and float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
