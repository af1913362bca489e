"""Measurements of a load test, from what happened to each request."""

from __future__ import annotations

from service.loadtest.fleet import Measured
from service.loadtest.plan import Plan, Target
from service.loadtest.samples import Recorder

PLAN = Plan(target=Target("h", 1, "/", tls=False), images=(b"1234",), rate=10.0, duration_s=10.0, warmup_s=2.0)


TIMING = b'decode;dur=2.00, inference;dur=5.00, batch;desc="4"'


def measured(rows: list[tuple[float, float, str]], busy: float = 0.1) -> Measured:
    """Make them from (when it was to be sent, how long it took, what failed)."""
    recorder = Recorder()
    for at, took, failure in rows:
        recorder.add(100 + at, 100 + at + 0.001, 100 + at + took, failure, b"" if failure else TIMING)
    return Measured(PLAN, 1, recorder.samples(100.0), busy)
