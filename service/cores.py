"""How many processor cores this process may keep busy."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """The cores it may run on, or fewer where a container's quota gives it less time than they have; at least 1.

    More threads than that would share the quota and wait for each other. OMP_NUM_THREADS is a bound as well: by it
    whoever starts several processes on one machine, such as Ray, shares the cores among them.

    Args:
        cgroup: where the system tells of the quota.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if (asked := os.environ.get("OMP_NUM_THREADS", "")).isdecimal() and int(asked) > 0:
        cores = min(cores, int(asked))
    quota = _quota(cgroup)
    return cores if quota is None else max(1, min(cores, int(quota)))


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
