"""The run on a GPU machine, as far as it needs no GPU: its table, its time limits, what is kept of a part cut short."""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))

import run
from record import Record
from run import LIMITS_S, PARTS, counted, run_limited, run_part
from table import GOALS, as_table, figures

FOUND: dict[str, Any] = {
    "machine": {"gpu": "a GPU", "driver": None, "cores": 16},
    "model": {
        "error": None,
        "speed": {
            "torchvision fp32 x1": 50.0,
            "torchvision fp32 x8": 40.0,
            "torchvision autocast x1": 80.0,
            "torchvision autocast x16": 200.0,
            "ours fp16 x1": 400.0,
            "ours fp16 x16": 1000.0,
            "ours bf16 x16": 2000.0,
        },
    },
    "http": {
        "error": "cut after 100 s",
        "callers 1": {"images_per_s": 100, "server_cores": 1.5},
        "callers 64": {"images_per_s": 900},
    },
    "quality": {"error": None, "fp32": {"AP": 0.605}, "fp16": {"AP": 0.6044}, "bf16": {"AP": 0.61}},
    "tests": {"error": "ended with 1", "passed": 5, "failed": ["tests.a::test_b"]},
}


def test_figures_by_hand() -> None:
    found = figures(FOUND)
    assert found.keys() == GOALS.keys()
    assert found["best"] == 1000
    assert found["one_ms"] == 2.5
    assert found["times_eager"] == 20
    assert found["times_autocast"] == 5
    assert found["share_64"] == 90
    assert found["share_192"] is None
    assert found["cores"] == 1.5
    assert found["fp16_lost"] == pytest.approx(0.06)
    assert found["bf16_lost"] == pytest.approx(0.5)
    assert found["tests"] == 1
    assert found["faults"] is found["training"] is None


def test_the_table_tells_what_is_met_missed_not_measured_cut_and_failed() -> None:
    table = as_table(FOUND)
    assert table.startswith("gpu a GPU, cores 16\n")
    assert "| images/s, model alone, best batch | 1000 | at least 1000 | met |" in table
    assert "| server's cores for one caller | 1.5 | at most 1.2 | missed |" in table
    assert "| over HTTP, 192 callers, % of the model alone | | | not measured |" in table
    assert "http: cut after 100 s" in table
    assert "failed: tests.a::test_b" in table


def test_all_parts_together_take_at_most_eight_minutes() -> None:
    assert PARTS.keys() == LIMITS_S.keys()
    assert {goal.part for goal in GOALS.values()} == PARTS.keys()
    assert sum(LIMITS_S.values()) <= 8 * 60


def test_a_part_that_takes_too_long_is_cut_with_all_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "print('begun', flush=True)\n"
        "time.sleep(60)\n"
    )
    started = time.monotonic()
    assert run_limited(["-c", code], tmp_path / "log", os.environ, 5) == "cut after 5 s"
    assert time.monotonic() - started < 40
    assert (tmp_path / "log").read_text() == "begun\n"
    killed = [int(pid) for pid in pids.read_text().split()]
    until = time.monotonic() + 30  # a process that is killed takes a moment to go
    while any(map(_runs, killed)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(_runs, killed))


def test_a_part_that_fails_says_so(tmp_path: Path) -> None:
    assert run_limited(["-c", "raise SystemExit(3)"], tmp_path / "log", os.environ, 60) == "ended with 3"
    assert run_limited(["-c", "print('done')"], tmp_path / "log", os.environ, 60) is None


def test_tests_are_counted_though_the_log_ends_early() -> None:
    log = (
        "tests/a.py::test_one PASSED      [ 25%]\n"
        "tests/a.py::test_two[a b] FAILED [ 50%]\n"
        "tests/a.py::test_three SKIPPED (needs a GPU) [ 75%]\n"
        "tests/a.py::test_four "
    )
    assert counted(log) == {"passed": 1, "skipped": 1, "failed": ["tests/a.py::test_two[a b]"]}
    assert counted("no tests") == {"passed": None, "failed": []}


def test_a_part_that_breaks_down_is_reported_and_the_table_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> dict[str, Any]:
        raise ValueError("no JSON")

    monkeypatch.setitem(PARTS, "quality", broken)
    found = {"machine": {"gpu": None}, "quality": run_part("quality", Namespace(), {}, 1)}
    assert found["quality"] == {"error": "ValueError: no JSON"}
    assert "quality: ValueError: no JSON" in as_table(found)


def test_a_copy_without_git_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert run._commit() is None


def test_figures_are_kept_when_the_next_one_fails(tmp_path: Path) -> None:
    record = Record(tmp_path / "part.json")
    record.measure("good", lambda: 3)

    def bad() -> int:
        raise ValueError("no such kernel")

    record.measure("bad", bad)
    assert json.loads((tmp_path / "part.json").read_text()) == {
        "good": 3,
        "bad": {"error": "ValueError: no such kernel"},
    }


def _runs(pid: int) -> bool:
    """Whether the process is there and is no zombie that waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
