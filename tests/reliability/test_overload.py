"""Five times as many requests as the device can answer."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter

import pytest

from tests.support import calls
from tests.support.calls import Reply, record
from tests.support.faulty_server import faulty, numbered_png

pytestmark = pytest.mark.reliability

SECONDS = float(os.environ.get("RELIABILITY_OVERLOAD_S", "60"))
BATCH_S, BATCH = 0.2, 4
CAPACITY = BATCH / BATCH_S  # images a second
DEADLINE_S = 3.0
WARM_UP_S = 5.0


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


async def offered(port: int, bodies: list[bytes], rate: float, seconds: float) -> list[tuple[int, Reply]]:
    """Replies to requests that come at a rate, whether or not those before them are answered."""
    tasks: list[asyncio.Task[Reply]] = []
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        while len(tasks) < elapsed * rate:
            body = bodies[len(tasks) % len(bodies)]
            tasks.append(asyncio.create_task(calls.call(port, calls.post(body, X_Request_Timeout_Ms=3000))))
        await asyncio.sleep(0.005)
    return list(enumerate(await asyncio.gather(*tasks)))


def test_overload_is_shed_at_the_door() -> None:
    bodies = [numbered_png(n) for n in range(1000)]
    with faulty(batch_s=BATCH_S, max_batch_size=BATCH) as server:
        asyncio.run(offered(server.port, bodies, 5 * CAPACITY, WARM_UP_S))
        before_kib = server.memory_kib()
        started = time.perf_counter()
        replies = asyncio.run(offered(server.port, bodies, 5 * CAPACITY, WARM_UP_S + SECONDS))
        after_kib = server.memory_kib()
        assert server.health() == "ok"

    assert all(reply.number == n % len(bodies) for n, reply in replies if reply.status == 200)
    # Only what ends in the window counts: not the filling of the queue, nor its emptying.
    window = [reply for _, reply in replies if WARM_UP_S <= reply.ended - started <= WARM_UP_S + SECONDS]
    statuses = Counter(reply.status for reply in window)
    accepted = [reply.seconds for reply in window if reply.status == 200]
    rejected = [reply.seconds for reply in window if reply.status == 429]
    goodput = len(accepted) / (SECONDS * CAPACITY)
    record(
        f"overload: {len(window) / SECONDS / CAPACITY:.1f}x for {SECONDS:g} s; {dict(statuses)}; "
        f"goodput {goodput:.1%}; accepted p99 {percentile(accepted, 0.99):.2f} s of {DEADLINE_S:g}; rejected p50 "
        f"{percentile(rejected, 0.5) * 1e3:.1f} ms, p99 {percentile(rejected, 0.99) * 1e3:.1f} ms; "
        f"memory {before_kib / 1024:.0f} -> {after_kib / 1024:.0f} MiB"
    )
    assert set(statuses) <= {200, 429, 504}
    assert goodput >= 0.95
    assert percentile(accepted, 0.99) <= DEADLINE_S
    assert percentile(rejected, 0.99) < 0.05
    assert after_kib < before_kib * 1.05
