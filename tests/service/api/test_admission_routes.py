"""Who is let in, and what is rejected for want of memory, as callers see it; `Admission` itself: test_admission.py."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.support.fakes import FakeDetector, red_png
from tests.support.servers import serving

pytestmark = pytest.mark.anyio


def check_rejection(response: httpx.Response, code: str) -> None:
    assert response.status_code == 429, response.text
    assert response.json()["type"].endswith(f":{code}")
    assert int(response.headers["retry-after"]) >= 1


async def test_a_full_queue_says_when_to_come_back() -> None:
    detector = FakeDetector()
    detector.gate.clear()
    async with serving(detector, queue_capacity=2) as client:
        accepted = [asyncio.create_task(client.post("/detect", content=red_png(n))) for n in range(2)]
        while (await client.get("/healthz")).json()["images_in_flight"] < 2:
            await asyncio.sleep(0.01)
        rejected = await client.post("/detect", content=red_png(9))
        check_rejection(rejected, "queue-full")
        detector.gate.set()
        assert [r.status_code for r in await asyncio.gather(*accepted)] == [200, 200]


async def test_small_files_of_large_pictures_cannot_fill_the_memory() -> None:
    detector = FakeDetector()
    detector.gate.clear()
    async with serving(detector, queue_capacity_pixels=10_000) as client:
        first = asyncio.create_task(client.post("/detect", content=red_png(1, (90, 90))))
        assert await asyncio.to_thread(detector.started.wait, 20)
        rejected = await client.post("/detect", content=red_png(2, (90, 90)))
        check_rejection(rejected, "queue-full")
        detector.gate.set()
        assert (await first).status_code == 200
        assert (await client.post("/detect", content=red_png(2, (200, 200)))).status_code == 200


async def test_what_is_padded_for_the_device_counts_where_it_is_more() -> None:
    detector = FakeDetector()
    detector.padded_shape = lambda size_hw: (80, 100)
    detector.gate.clear()
    async with serving(detector, queue_capacity_pixels=10_000) as client:
        first = asyncio.create_task(client.post("/detect", content=red_png(1, (8, 8))))
        assert await asyncio.to_thread(detector.started.wait, 20)
        check_rejection(await client.post("/detect", content=red_png(2, (8, 8))), "queue-full")
        detector.gate.set()
        assert (await first).status_code == 200


async def test_the_images_of_a_batch_wait_for_each_others_memory() -> None:
    files = [("file", red_png(n, (90, 90))) for n in range(6)]
    async with serving(FakeDetector(), queue_capacity_pixels=10_000) as client:
        results = (await client.post("/detect/batch", files=files)).json()["results"]
        assert [result["boxes"][0][0] for result in results] == [0, 1, 2, 3, 4, 5]
    async with serving(FakeDetector(seconds=0.5), queue_capacity_pixels=10_000) as client:
        headers = {"X-Request-Timeout-Ms": "1500"}
        results = (await client.post("/detect/batch", files=files, headers=headers)).json()["results"]
        assert {result.get("status", 200) for result in results} == {200, 504}


async def test_a_deadline_that_cannot_be_met_is_rejected_before_the_body_is_read() -> None:
    detector = FakeDetector(seconds=0.5)

    async def unread() -> Any:
        raise AssertionError("the body was read")
        yield b""

    async with serving(detector) as client:
        await client.post("/detect", content=red_png(0))  # two images a second, at most
        detector.gate.clear()
        waiting = [asyncio.create_task(client.post("/detect", content=red_png(n))) for n in range(1, 5)]
        while (await client.get("/healthz")).json()["images_in_flight"] < 4:
            await asyncio.sleep(0.01)
        hasty = await client.post("/detect", content=unread(), headers={"X-Request-Timeout-Ms": "1000"})
        check_rejection(hasty, "too-late")
        assert 1 <= int(hasty.headers["retry-after"]) <= 10
        assert 'frcnn_images_rejected_total{reason="too-late"} 1.0' in (await client.get("/metrics")).text
        detector.gate.set()
        assert {r.status_code for r in await asyncio.gather(*waiting)} == {200}


@pytest.mark.parametrize("path", ["/detect", "/v2/models/fasterrcnn_resnet50_fpn/infer"])
async def test_who_sends_slowly_holds_no_place_but_gets_one_with_the_rest(path: str) -> None:
    arriving, rest = asyncio.Event(), asyncio.Event()
    data = red_png(3)
    if path != "/detect":
        encoded = base64.b64encode(data).decode()
        image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [encoded]}
        data = json.dumps({"inputs": [image]}).encode()

    async def body() -> AsyncIterator[bytes]:
        yield data[:20]
        arriving.set()
        await rest.wait()
        yield data[20:]

    detector = FakeDetector()
    async with serving(detector, queue_capacity=1) as client:
        slow = asyncio.create_task(client.post(path, content=body()))
        await asyncio.wait_for(arriving.wait(), 20)
        assert (await client.get("/healthz")).json()["images_in_flight"] == 0
        assert (await client.post("/detect", content=red_png(1))).status_code == 200
        rest.set()
        assert (await slow).status_code == 200
        # With the only place taken in between, the rejection comes when the body is there.
        arriving.clear()
        rest.clear()
        slow = asyncio.create_task(client.post(path, content=body()))
        await asyncio.wait_for(arriving.wait(), 20)
        detector.gate.clear()
        quick = asyncio.create_task(client.post("/detect", content=red_png(1)))
        while (await client.get("/healthz")).json()["images_in_flight"] < 1:
            await asyncio.sleep(0.01)
        rest.set()
        assert (await slow).status_code == 429
        detector.gate.set()
        assert (await quick).status_code == 200
    assert [batch[0][0] for batch in detector.batches] == [1, 3, 1]


async def test_health_tells_that_memory_ran_out() -> None:
    detector = FakeDetector(memory=2)
    async with serving(detector, max_batch_size=4, max_queue_delay_ms=5000) as client:
        files = [("file", red_png(n)) for n in range(4)]
        results = (await client.post("/detect/batch", files=files)).json()["results"]
        assert [one["boxes"][0][0] for one in results] == [0, 1, 2, 3]
        health = await client.get("/healthz")
    assert health.status_code == 200
    assert health.json()["batch_caps"] == {"cpu": 2}
    assert "memory ran out" in health.json()["detail"]
