from __future__ import annotations

import os

import pytest

from service.cores import usable_cores

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", CORES),
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("190000 100000", 1),
        ("99900000 100000", CORES),
    ],
)
def test_a_quota_of_cgroup_v2_bounds_the_cores(tmp_path, quota, cores):
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", CORES), ("100000", 1)])
def test_a_quota_of_cgroup_v1_bounds_the_cores(tmp_path, quota, cores):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize("text", ["", "nonsense", "100000 0", "1 2 3"])
def test_what_cannot_be_read_bounds_nothing(tmp_path, text):
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(tmp_path) == CORES
    assert usable_cores(tmp_path / "absent") == CORES
