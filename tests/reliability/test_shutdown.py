"""SIGTERM under load, again and again."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter

import pytest

from tests.support import calls
from tests.support.calls import Reply, record
from tests.support.faulty_server import CANARY, ServerProcess, faulty, numbered_png

pytestmark = pytest.mark.reliability

ROUNDS = int(os.environ.get("RELIABILITY_SIGTERMS", "20"))
CALLERS = 24


@pytest.mark.parametrize("drain_delay_s", [0, 0.5])
def test_every_accepted_request_is_answered(drain_delay_s: float) -> None:
    totals: Counter[int] = Counter()
    longest = 0.0
    for turn in range(ROUNDS // 2):
        with faulty(batch_s=0.1, max_batch_size=4, drain_delay_s=drain_delay_s, shutdown_timeout_s=20) as server:
            replies, seconds = asyncio.run(killed_under_load(server, polls_readiness=drain_delay_s > 0))
            assert server.child.wait(30) == 0
            log = server.log.read_text()
            ran = Counter(number for batch in server.ran() for number in batch)
        answered = [reply for _, reply in replies if reply.status == 200]
        assert all(reply.number == n for n, reply in replies if reply.status == 200)
        # What the detector was given is what was answered: nothing accepted was lost, nothing ran twice.
        assert ran == Counter(reply.number for reply in answered), (turn, log[-2000:])
        assert "Traceback" not in log
        statuses = Counter(reply.status for _, reply in replies)
        # 503 and a refused connection are rejections. Callers who poll /readyz never meet either.
        assert set(statuses) <= ({200} if drain_delay_s else {200, 503, 0})
        assert len(answered) > CALLERS
        totals += statuses
        longest = max(longest, seconds)
    record(f"SIGTERM x{ROUNDS // 2}, drain_delay {drain_delay_s:g} s: {dict(totals)}, exit 0 within {longest:.1f} s")


async def killed_under_load(server: ServerProcess, *, polls_readiness: bool) -> tuple[list[tuple[int, Reply]], float]:
    """Callers who send until they are rejected or, if they poll it, until /readyz fails."""
    replies: list[tuple[int, Reply]] = []
    numbers = iter(range(65_000))
    leaving = asyncio.Event()

    async def caller() -> None:
        while not (polls_readiness and leaving.is_set()):
            number = next(numbers)
            if number == CANARY:
                continue
            reply = await calls.call(server.port, calls.post(numbered_png(number)))
            replies.append((number, reply))
            if reply.status != 200:
                return

    async def balancer() -> None:
        request = b"GET /readyz HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
        while (await calls.call(server.port, request)).status == 200:
            await asyncio.sleep(0.05)
        leaving.set()

    callers = [asyncio.create_task(caller()) for _ in range(CALLERS)]
    watching = asyncio.create_task(balancer())
    async with asyncio.timeout(60):  # under load, however slow the machine is
        while len(replies) <= 2 * CALLERS:
            await asyncio.sleep(0.01)
    server.child.send_signal(signal.SIGTERM)
    started = time.perf_counter()
    await asyncio.gather(*callers, watching)
    await asyncio.to_thread(server.child.wait, 30)
    return replies, time.perf_counter() - started
