from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image
from torch import Tensor

from service.devices.detector import Detections
from service.devices.gpus import DetectorError
from service.errors import UnavailableError
from service.scale.replica import Replica, ReplicaFailingError
from tests.support.fakes import FakeDetector

pytestmark = pytest.mark.anyio

SETTINGS = {"device": "cpu", "max_batch_size": 1, "canary_interval_s": 0.2, "log_level": "error"}


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (7, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://replica")


async def test_it_is_begun_when_the_model_is_loaded() -> None:
    replica = Replica(SETTINGS, lambda _: [FakeDetector()])
    app = replica.__serve_build_asgi_app__()
    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.get("/readyz")).status_code == 200  # at once: nobody has waited
        await replica.check_health()
        found = await client.post("/detect", content=png(), headers={"Content-Type": "image/png"})
        assert found.json()["boxes"][0][0] == 7


@pytest.mark.parametrize(
    ("given", "environment", "threads"), [({}, None, 2), ({}, "3", 3), ({"decode_threads": 4}, "3", 4)]
)
async def test_its_cores_decode_unless_it_is_told_otherwise(
    given: dict[str, Any], environment: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment is not None:
        monkeypatch.setenv("FRCNN_DECODE_THREADS", environment)
    replica = Replica(SETTINGS | given, lambda _: [FakeDetector()], decode_threads=2)
    assert replica.__serve_build_asgi_app__().state.service.settings.decode_threads == threads


async def test_a_model_that_cannot_be_loaded_fails_the_start() -> None:
    def load(_: Any) -> Any:
        raise DetectorError("no such GPU")

    app = Replica(SETTINGS, load).__serve_build_asgi_app__()
    with pytest.raises(DetectorError, match="no such GPU"):
        async with app.router.lifespan_context(app):
            pass


async def test_serve_is_told_when_no_device_answers() -> None:
    class Breaking(FakeDetector):
        broken = False

        def detect(self, images: Sequence[Tensor]) -> list[Detections]:
            if self.broken:
                raise RuntimeError("the GPU has fallen off the bus")
            return super().detect(images)

    detector = Breaking()
    replica = Replica(SETTINGS, lambda _: [detector])
    app = replica.__serve_build_asgi_app__()
    async with app.router.lifespan_context(app):
        await replica.check_health()
        detector.broken = True
        async with asyncio.timeout(20):
            while app.state.service.condition.status == "ok":
                await asyncio.sleep(0.02)
        with pytest.raises(ReplicaFailingError, match="no device answers"):
            await replica.check_health()


async def test_the_end_of_the_lifespan_rejects_and_ends_the_devices() -> None:
    app = Replica(SETTINGS, lambda _: [FakeDetector()]).__serve_build_asgi_app__()
    async with app.router.lifespan_context(app):
        service = app.state.service
        assert service.batcher
    with pytest.raises(UnavailableError, match="shutting down"):
        _ = service.batcher
    assert service.condition.status == "draining"


@pytest.mark.parametrize(("given", "own"), [({}, 1), ({"X-Request-ID": "mine"}, 0), ({"X-Request-ID": "a b"}, 1)])
async def test_the_id_that_the_proxy_adds_is_left_to_it(given: dict[str, str], own: int) -> None:
    app = Replica(SETTINGS, lambda _: [FakeDetector()]).__serve_build_asgi_app__()
    async with app.router.lifespan_context(app), client_of(app) as client:
        responses = [
            await client.get("/labels", headers=given),
            await client.post("/detect", content=png(), headers=given),
            await client.post("/detect", content=b"", headers=given),
        ]
    assert [response.status_code for response in responses] == [200, 200, 400]
    for response in responses:
        assert len(response.headers.get_list("x-request-id")) == own
