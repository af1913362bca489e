"""A device that fails in each way, under load: the others get their answers, and health says what is the matter."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from tests.support import calls
from tests.support.calls import Reply, record
from tests.support.faulty_server import ServerProcess, faulty, numbered_png

pytestmark = pytest.mark.reliability

RAISES, KILLS_THE_THREAD, HANGS, NEEDS_MUCH_MEMORY, BREAKS_THE_DEVICE, HANGS_LATER = 1, 2, 3, 4, 5, 6


async def eight_at_once(server: ServerProcess, bodies: list[bytes]) -> list[Reply]:
    """Replies to pictures that wait together behind one that runs."""
    known = len(server.ran())
    tasks = [asyncio.create_task(calls.call(server.port, calls.post(bodies[0])))]
    while len(server.ran()) == known:
        await asyncio.sleep(0.01)
    tasks += [asyncio.create_task(calls.call(server.port, calls.post(body))) for body in bodies[1:]]
    return list(await asyncio.gather(*tasks))[1:]


@pytest.mark.parametrize(
    ("fault", "status"),
    [(RAISES, 500), (KILLS_THE_THREAD, 500), (NEEDS_MUCH_MEMORY, 200)],
    ids=["raises", "kills", "memory"],
)
def test_one_of_eight(fault: int, status: int) -> None:
    with faulty(batch_s=0.5, max_batch_size=8) as server:
        bodies = [numbered_png(n, fault if n == 5 else 0) for n in range(9)]
        replies = asyncio.run(eight_at_once(server, bodies))
        health = httpx.get(f"{server.url}/healthz").json()
        assert len(server.ran()[1]) == 8
    assert replies[4].status == status
    assert [reply.number for n, reply in enumerate(replies) if n != 4] == [1, 2, 3, 4, 6, 7, 8]
    assert health["status"] == "ok"
    if fault == NEEDS_MUCH_MEMORY:
        assert health["batch_caps"] == {"cpu": 2}
        assert "memory ran out" in health["detail"]
    record(f"fault {fault}: {[reply.status for reply in replies]}, health {health['status']}: {health['detail']}")


@pytest.mark.parametrize(("fault", "name"), [(HANGS, "hangs"), (BREAKS_THE_DEVICE, "breaks")], ids=["hangs", "breaks"])
def test_a_device_that_is_lost_is_said_so_and_comes_back(fault: int, name: str) -> None:
    seen: list[str] = []
    with faulty(batch_s=0.1, max_batch_size=4, hang_timeout_s=2, canary_interval_s=2) as server:

        async def watch() -> None:
            async with httpx.AsyncClient() as client:
                while True:
                    health = (await client.get(f"{server.url}/healthz")).json()
                    if not seen or seen[-1] != health["status"]:
                        seen.append(health["status"])
                    await asyncio.sleep(0.02)

        async def scenario() -> tuple[list[Any], float]:
            watching = asyncio.create_task(watch())
            started = time.perf_counter()
            bodies = [numbered_png(n, fault if n == 0 else 0) for n in range(13)]
            replies = await asyncio.gather(*(calls.call(server.port, calls.post(body)) for body in bodies))
            told = time.perf_counter() - started
            while (await calls.call(server.port, calls.post(numbered_png(99)))).status != 200:
                await asyncio.sleep(0.05)
            recovered = time.perf_counter() - started
            while seen[-1] != "ok":
                await asyncio.sleep(0.02)
            watching.cancel()
            assert told < 20, "they waited for their deadlines"
            return list(replies), recovered

        replies, recovered = asyncio.run(scenario())
    assert seen == ["ok", "failing", "ok"]
    assert {reply.status for reply in replies} <= {200, 503}
    assert all(b"application/problem+json" not in reply.body for reply in replies)
    record(
        f"device {name}: {[reply.status for reply in replies]}, health {seen}, answers again after {recovered:.1f} s"
    )


def test_a_device_that_hangs_while_idle_is_noticed() -> None:
    with faulty(canary_interval_s=1) as server:
        assert asyncio.run(calls.call(server.port, calls.post(numbered_png(1, HANGS_LATER)))).number == 1
        answered = time.perf_counter()
        server.until(lambda: server.health() == "failing", 20)
        noticed = time.perf_counter() - answered
        server.until_ok()
        assert asyncio.run(calls.call(server.port, calls.post(numbered_png(2)))).number == 2
    record(f"idle: a device that hung was noticed after {noticed:.1f} s, with canary_interval_s=1, and loaded again")
