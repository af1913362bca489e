"""What is reserved is released when the memory is, not before."""

from __future__ import annotations

import asyncio
import gc
import io
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.types import Message, Scope

from service.app import create_app
from service.lifecycle import Service
from service.settings import Settings
from tests.support.fakes import FakeDetector, red_png
from tests.support.servers import serving

pytestmark = pytest.mark.anyio

PIXELS = 3 * 32 * 32  # bytes of `red_png`'s picture


@pytest.fixture(autouse=True)
def _without_the_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


class Held(NamedTuple):
    """A service, and its detector, whose gate is shut."""

    app: FastAPI
    service: Service
    client: httpx.AsyncClient
    detector: FakeDetector


@pytest.fixture
async def held() -> AsyncIterator[Held]:
    detector = FakeDetector()
    app = create_app(Settings(), load=lambda _: [detector])
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        await app.state.service.until_loaded()
        detector.gate.clear()
        yield Held(app, app.state.service, client, detector)
        detector.gate.set()


async def until(service: Service, used: int) -> None:
    async with asyncio.timeout(20):
        while service.admission.memory.used != used:
            await asyncio.sleep(0.001)


async def test_a_picture_is_counted_while_it_waits(held: Held) -> None:
    _, service, client, detector = held
    asking = asyncio.create_task(client.post("/detect", content=red_png(1)))
    assert await asyncio.to_thread(detector.started.wait, 20)
    await until(service, PIXELS)
    detector.gate.set()
    assert (await asking).status_code == 200
    await until(service, 0)


async def test_the_picture_of_a_caller_who_left_is_counted_while_the_device_has_it(held: Held) -> None:
    _, service, client, detector = held
    headers = {"X-Request-Timeout-Ms": "200"}
    asking = asyncio.create_task(client.post("/detect", content=red_png(1), headers=headers))
    assert await asyncio.to_thread(detector.started.wait, 20)
    assert (await asking).status_code == 504
    await until(service, PIXELS)
    assert service.admission.images.used == 0
    detector.gate.set()
    await until(service, 0)


async def test_each_picture_of_a_batch_is_freed_when_it_is_answered(held: Held) -> None:
    _, service, client, detector = held
    files = [("file", red_png(n)) for n in range(8)]
    asking = asyncio.create_task(client.post("/detect/batch", files=files))
    await until(service, 8 * PIXELS)
    detector.gate.set()
    assert len((await asking).json()["results"]) == 8
    await until(service, 0)


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\nbroken", b"\xff\xd8\xff", b""])
async def test_nothing_is_counted_of_what_failed(data: bytes, held: Held) -> None:
    _, service, client, _ = held
    cut = red_png(1)[:-30]
    for body in (data, cut):
        assert (await client.post("/detect", content=body)).status_code == 400
        await until(service, 0)


async def test_what_does_not_fit_is_rejected_and_says_so() -> None:
    detector = FakeDetector()
    detector.gate.clear()
    async with serving(detector, memory_budget_bytes=200_000) as client:
        first = asyncio.create_task(client.post("/detect", content=red_png(1, (200, 200))))
        assert await asyncio.to_thread(detector.started.wait, 20)
        rejected = await client.post("/detect", content=red_png(2, (200, 200)))
        assert rejected.status_code == 429
        assert "memory" in rejected.json()["detail"]
        assert 'frcnn_images_rejected_total{reason="memory-full"} 1.0' in (await client.get("/metrics")).text
        detector.gate.set()
        assert (await first).status_code == 200


async def test_a_drawn_answer_is_counted_until_it_is_read(held: Held) -> None:
    app, service, _, detector = held
    detector.gate.set()
    picture = io.BytesIO()
    Image.effect_noise((700, 700), 100).save(picture, "PNG")
    bodies, sizes, proceed = [picture.getvalue()], list[int](), asyncio.Event()

    async def receive() -> Message:
        if not bodies:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": bodies.pop(), "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            sizes.append(len(message["body"]))
            await proceed.wait()

    scope: Scope = {
        "type": "http", "method": "POST", "path": "/detect", "raw_path": b"/detect", "query_string": b"",
        "headers": [(b"accept", b"image/png")], "http_version": "1.1", "scheme": "http", "server": ("test", 80),
        "client": ("127.0.0.1", 1), "root_path": "",
    }  # fmt: skip
    answering = asyncio.create_task(app(scope, receive, send))
    async with asyncio.timeout(20):
        while not sizes:
            await asyncio.sleep(0.001)
    assert service.admission.images.used == 0
    assert service.admission.memory.used > 256 << 10
    proceed.set()
    await answering
    assert len(sizes) > 1
    assert sum(sizes) > 256 << 10
    del answering
    await until(service, 0)


async def test_callers_of_one_address_leave_room_for_another() -> None:
    detector = FakeDetector()
    app = create_app(Settings(queue_capacity=10), load=lambda _: [detector])
    async with app.router.lifespan_context(app):
        await app.state.service.until_loaded()
        detector.gate.clear()

        def client(address: str) -> httpx.AsyncClient:
            transport = httpx.ASGITransport(app, client=(address, 1))
            return httpx.AsyncClient(transport=transport, base_url="http://test")

        async with client("10.0.0.1") as greedy, client("10.0.0.2") as lone:
            asking = [asyncio.create_task(greedy.post("/detect", content=red_png(1))) for _ in range(12)]
            async with asyncio.timeout(20):
                while sum(one.done() for one in asking) < 4:
                    await asyncio.sleep(0.001)
            last = asyncio.create_task(lone.post("/detect", content=red_png(2)))
            async with asyncio.timeout(20):
                while app.state.service.images_in_flight < 9:
                    await asyncio.sleep(0.001)
            detector.gate.set()
            assert (await last).status_code == 200
            assert sorted([(await one).status_code for one in asking]) == [200] * 8 + [429] * 4
            reds = [red for batch in detector.batches for red, _, _ in batch]
            assert reds.index(2) <= 3  # one is at work, and one of each caller is next
