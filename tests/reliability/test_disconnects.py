"""Callers who leave."""

from __future__ import annotations

import asyncio
import os
import random

import httpx
import pytest

from tests.support import calls
from tests.support.calls import Reply, record
from tests.support.faulty_server import faulty, numbered_png

pytestmark = pytest.mark.reliability

CALLERS = int(os.environ.get("RELIABILITY_CALLERS", "200"))
DURING_UPLOAD, IN_QUEUE = 0, 1


async def leave(port: int, request: bytes, when: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request[: len(request) // 2] if when == DURING_UPLOAD else request)
    await writer.drain()
    await asyncio.sleep(random.uniform(0.2, 1.5))
    writer.close()


def test_the_images_of_those_who_leave_do_not_run() -> None:
    async def everybody(port: int) -> tuple[Reply, Reply]:
        blocker = asyncio.create_task(calls.call(port, calls.post(numbered_png(60_000))))
        while not server.ran():
            await asyncio.sleep(0.02)
        leaving = [leave(port, calls.post(numbered_png(n)), n % 2) for n in range(CALLERS)]
        await asyncio.gather(*leaving)
        stays = await calls.call(port, calls.post(numbered_png(60_001)))
        return await blocker, stays

    # The device is at work on somebody's picture for longer than anybody who leaves has patience.
    with faulty(batch_s=5.0, max_batch_size=8, queue_capacity=CALLERS + 2, fair_share="off") as server:
        blocker, stays = asyncio.run(everybody(server.port))
        assert (blocker.number, stays.number) == (60_000, 60_001)
        assert server.ran() == [[60_000], [60_001]]
        health = httpx.get(f"{server.url}/healthz").json()
        assert (health["status"], health["images_in_flight"]) == ("ok", 0)
        metrics = httpx.get(f"{server.url}/metrics").text
        assert f'frcnn_requests_total{{route="/detect",status="499"}} {CALLERS}.0' in metrics
        assert "frcnn_images_queued 0.0" in metrics
    record(f"disconnects: {CALLERS} callers left, 0 of their images ran, 0 in flight after")


def test_nothing_leaks() -> None:
    async def rounds(port: int, count: int) -> None:
        for _ in range(count):
            await asyncio.gather(*(leave(port, calls.post(numbered_png(n)), n % 2) for n in range(CALLERS)))

    with faulty(batch_s=0.05, max_batch_size=8, queue_capacity=CALLERS, fair_share="off") as server:
        asyncio.run(rounds(server.port, 3))
        before = server.memory_kib()
        asyncio.run(rounds(server.port, 10))
        after = server.memory_kib()
        server.until(lambda: httpx.get(f"{server.url}/healthz").json()["images_in_flight"] == 0)
        connections = len(open_sockets(server.child.pid))
    record(f"disconnects: 10 rounds more, memory {before / 1024:.0f} -> {after / 1024:.0f} MiB, {connections} sockets")
    assert after < before * 1.05
    assert connections < 20


def open_sockets(pid: int) -> list[str]:
    folder = f"/proc/{pid}/fd"
    links = []
    for name in os.listdir(folder):  # noqa: PTH208 - a folder whose entries come and go
        try:
            links.append(os.readlink(f"{folder}/{name}"))  # noqa: PTH115
        except FileNotFoundError:
            continue
    return [link for link in links if link.startswith("socket:")]
