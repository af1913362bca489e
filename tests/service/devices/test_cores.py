from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.devices.cores import bound_spinning, compute_threads, usable_cores

ROOT = Path(__file__).parents[3]
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
def test_a_quota_of_cgroup_v2_bounds_the_cores(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", CORES), ("100000", 1)])
def test_a_quota_of_cgroup_v1_bounds_the_cores(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize("text", ["", "nonsense", "100000 0", "1 2 3"])
def test_what_cannot_be_read_bounds_nothing(tmp_path: Path, text: str) -> None:
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


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"GOMP_SPINCOUNT": "2000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_threads_spin_briefly_unless_the_environment_says_how_they_wait(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], wanted: dict[str, Any]
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    bound_spinning()
    found = {name: os.environ[name] for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY") if name in os.environ}
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)  # that which was set is undone, too
    assert found == wanted


def test_commands_and_replicas_bound_it_before_torch_is_loaded() -> None:
    show = "print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])"
    unset = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    for code in (f"import service.cli.app as a; a.app = lambda: {show}; a.main()", f"import service.scale; {show}"):
        command = [sys.executable, "-c", f"import os, sys; {code}"]
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert child.stdout == "False 2000\n", child.stderr


def test_the_image_has_the_same_bound() -> None:
    """There, a program that loads torch without the commands has it, too."""
    assert re.findall(r"GOMP_SPINCOUNT=(\d+)", (ROOT / "Dockerfile").read_text()) == ["2000"]
