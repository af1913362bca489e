from __future__ import annotations

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
