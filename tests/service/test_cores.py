from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.cores import compute_threads, usable_cores

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.fixture(autouse=True)
def _no_bound_of_the_developers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


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


@pytest.mark.parametrize(("asked", "bound"), [("1", 1), ("", None), ("0", None), ("all", None), ("9999", None)])
def test_omp_num_threads_bounds_the_threads_that_compute_and_no_others(
    asked: str, bound: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert compute_threads(["cpu"], tmp_path) == (bound or CORES)
    assert usable_cores(tmp_path) == CORES


def test_beside_a_gpu_one_thread_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16), raising=False)
    assert compute_threads(["cuda:0", "cuda:1"], tmp_path) == 1
    assert compute_threads(["cuda:0", "cpu"], tmp_path) == 16
