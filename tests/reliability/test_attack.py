"""Everything at once from 64 callers, with a polite one beside them; and what must not grow with what is asked."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.attackers import MOST_BATCHES_WAITED, MOST_BYTES, MOST_LOG_LINES, Watch, photo
from tests.support.calls import record
from tests.support.default_server import DefaultServer, served_as_by_default
from tests.support.faulty_server import faulty

pytestmark = pytest.mark.reliability

SECONDS = float(os.environ.get("RELIABILITY_ATTACK_S", "60"))
SHUTDOWN_S = 20


@contextmanager
def attackers(port: int, seconds: float, addresses: int) -> Iterator[subprocess.Popen[str]]:
    """Attack from a process of the lowest priority: on other machines attackers take none of the server's cores."""
    command = [sys.executable, "-m", "tests.support.attackers", str(port), str(seconds), str(addresses)]
    process = subprocess.Popen(["nice", "-n", "19", *command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


@pytest.mark.parametrize("addresses", [1, 64])
def test_under_attack_a_polite_caller_is_answered_and_memory_stays(addresses: int, tmp_path: Path) -> None:
    """With an address each, attackers have a share each, and the polite caller one of 65."""
    logged: list[int] = []

    async def attacked(server: DefaultServer) -> tuple[dict[str, Any], Watch, float]:
        watch = Watch(server.port, server.memory_kib)
        with attackers(server.port, SECONDS + 30, addresses) as attacking:
            watching = asyncio.create_task(watch.run(photo()))
            await asyncio.sleep(SECONDS)
            watch.stopped.set()
            await watching
            logged.append(len(server.lines()))
            server.child.send_signal(signal.SIGTERM)
            started = time.perf_counter()
            await asyncio.to_thread(server.child.wait, SHUTDOWN_S + 30)
            ended = time.perf_counter() - started
            attacking.terminate()
            return json.loads(attacking.communicate(timeout=30)[0]), watch, ended

    with served_as_by_default(tmp_path / "log", access_log=False, shutdown_timeout_s=SHUTDOWN_S) as server:
        before = server.memory_kib()
        attack, watch, ended = asyncio.run(attacked(server))
        code = server.child.returncode
        lines = server.lines()[logged[0] :]
    stages = ", ".join(
        f"{name} {percentile(seconds, 0.5):.2f} and {percentile(seconds, 0.99):.2f} s"
        for name, seconds in watch.stage_s.items()
    )
    record(
        f"attack: 64 callers at {addresses} addresses for {SECONDS:g} s, {attack['sent']} requests, answers "
        f"{attack['statuses']}; memory {before / 1024:.0f} -> {watch.most_kib / 1024:.0f} MiB at most; polite "
        f"{watch.statuses}, p50 {percentile(watch.seconds, 0.5):.2f} s, p99 {percentile(watch.seconds, 0.99):.2f} s; "
        f"p50 and p99 of {stages}; rejected {watch.rejected}; "
        f"waited {percentile(watch.batches_waited, 0.5):.1f} and {percentile(watch.batches_waited, 0.99):.1f} batches; "
        f"health {watch.health}, after {watch.health_s:.2f} s at most; SIGTERM: exit {code} after {ended:.1f} s, "
        f"{len(lines)} lines logged since"
    )
    print("\n".join(lines))
    assert watch.most_kib * 1024 < MOST_BYTES
    assert set(watch.health) == {"ok"}
    assert all(status < 500 for status in watch.statuses)
    assert watch.statuses[200] > 0
    assert "500" not in attack["statuses"]
    assert code == 0
    assert ended <= SHUTDOWN_S + 2
    assert len(lines) <= MOST_LOG_LINES
    if addresses == 1:
        assert percentile(watch.batches_waited, 0.99) < MOST_BATCHES_WAITED


def test_the_series_do_not_grow_with_what_is_asked() -> None:
    with faulty() as server, httpx.Client(base_url=server.url, timeout=30) as client:

        def series() -> set[str]:
            lines = client.get("/metrics").text.splitlines()
            return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}

        for path in ("/metrics", "/unknown", "/livez", "/healthz", "/page/none", "/v2/none"):
            for method in ("GET", "PUT", "BREW"):
                client.request(method, path)
        before = series()
        for _ in range(1000):
            client.get("/metrics")
        for number in range(10_000):
            client.request(("GET", "PUT", f"M{number}")[number % 3], f"/{number}/{number % 7}?{number}")
        after = series()
        record(f"series: {len(before)} before 1,000 scrapes and 10,000 unknown paths and methods, {len(after)} after")
    assert after == before
