"""The answers that the OpenAPI document shows are those that the service gives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from model.weights import bundled_is_present
from service.app import create_app
from service.page.routes import STATIC
from service.settings import Settings

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not bundled_is_present(), reason="the bundled weights are not built"),
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(weights="bundled", device="cpu", precision="fp32", max_batch_size=1))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", timeout=120) as opened,
    ):
        while (await opened.get("/readyz")).json()["status"] == "loading":
            await asyncio.sleep(0.05)
        yield opened


async def example_of(client: httpx.AsyncClient, schema: str) -> Any:
    (example,) = (await client.get("/openapi.json")).json()["components"]["schemas"][schema]["examples"]
    return example


async def test_a_detection(client: httpx.AsyncClient) -> None:
    example = await example_of(client, "DetectionResult")
    sample = (STATIC / "sample.jpg").read_bytes()
    answer = (await client.post("/detect", content=sample, params={"max_detections": len(example["boxes"])})).json()
    for box, shown in zip(answer.pop("boxes"), example.pop("boxes"), strict=True):
        assert box == pytest.approx(shown, abs=0.05)  # decoders and processors differ in the last digits
    assert answer.pop("scores") == pytest.approx(example.pop("scores"), abs=1e-3)
    assert answer == example


async def test_a_problem(client: httpx.AsyncClient) -> None:
    example = await example_of(client, "Problem")
    headers = {"X-Request-ID": example["request_id"]}
    answer = await client.post("/detect", content=b"", params={"labels": "cat"}, headers=headers)
    assert (answer.status_code, answer.json()) == (example["status"], example)


async def test_the_labels(client: httpx.AsyncClient) -> None:
    assert (await client.get("/labels")).json() == await example_of(client, "Labels")
