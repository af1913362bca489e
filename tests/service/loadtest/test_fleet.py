from __future__ import annotations

import time
from dataclasses import replace

import pytest

from service.loadtest.fleet import WorkerLostError, run_plan, shares
from service.loadtest.plan import Plan, Target

PLAN = Plan(target=Target("h", 1, "/detect", tls=False), images=(b"a", b"b"), duration_s=200.0, rate=50.0, warmup_s=0)


def test_processes_share_the_load() -> None:
    parts = shares(PLAN, 3)
    assert sum(part.rate or 0 for part in parts) == pytest.approx(50)
    assert len({part.seed for part in parts}) == 3
    closed = shares(replace(PLAN, rate=None, concurrency=8), 3)
    assert [part.concurrency for part in closed] == [3, 3, 2]


def test_a_process_that_dies_is_said_so() -> None:
    with pytest.raises(WorkerLostError):
        run_plan(replace(PLAN, images=(None,)), workers=2)  # type: ignore[arg-type]


def test_figures_larger_than_a_pipe_wait_for_a_slow_display() -> None:
    """Nothing listens on the port: each request fails, and is recorded."""
    plan = replace(PLAN, target=Target("127.0.0.1", 1, "/detect", tls=False), rate=8000.0, duration_s=2.0)
    measured = run_plan(plan, on_progress=lambda _: time.sleep(1.0))
    assert len(measured.samples.intended) > 10_000
