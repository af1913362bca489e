"""Long use by many callers with pictures of many sizes."""

from __future__ import annotations

import asyncio
import io
import os
import random

import pytest
from PIL import Image

from tests.support import calls
from tests.support.calls import record
from tests.support.faulty_server import CANARY, faulty

pytestmark = pytest.mark.reliability

REQUESTS = int(os.environ.get("RELIABILITY_SOAK", "10000"))
WARM_UP = 2000
AT_ONCE = 32
SIZES = [(32, 32), (640, 480), (480, 640), (333, 777), (1280, 720), (64, 1000), (800, 800), (1, 1), (1920, 1080)]


def test_memory_stays_and_nobody_gets_anothers_answer() -> None:
    random_ = random.Random(7)

    def body(number: int) -> bytes:
        image = Image.new("RGB", random_.choice(SIZES), (number // 256, number % 256, 0))
        buffer = io.BytesIO()
        image.save(buffer, random_.choice(("PNG", "BMP", "WEBP")), compress_level=1, lossless=True)
        return buffer.getvalue()

    async def send(port: int, numbers: range) -> int:
        gate, wrong = asyncio.Semaphore(AT_ONCE), 0

        async def one(number: int) -> bool:
            async with gate:
                reply = await calls.call(port, calls.post(body(number)))
            assert reply.status == 200, reply
            return bool(reply.number == number)

        for start in range(numbers.start, numbers.stop, 500):
            slice_ = [number for number in numbers[start - numbers.start :][:500] if number != CANARY]
            wrong += (await asyncio.gather(*map(one, slice_))).count(False)
        return wrong

    with faulty(max_batch_size=8, canary_interval_s=2) as server:
        wrong = asyncio.run(send(server.port, range(WARM_UP)))
        before = server.memory_at_rest_kib()
        wrong += asyncio.run(send(server.port, range(WARM_UP, WARM_UP + REQUESTS)))
        after = server.memory_at_rest_kib()
        batches = [len(batch) for batch in server.ran()]
        assert server.health() == "ok"
    record(
        f"soak: {REQUESTS} after {WARM_UP} to warm up, {len(SIZES)} sizes, {wrong} wrong answers, mean batch "
        f"{sum(batches) / len(batches):.1f}; memory {before / 1024:.1f} -> {after / 1024:.1f} MiB "
        f"({after / before - 1:+.1%})"
    )
    assert wrong == 0
    assert after < before * 1.02
