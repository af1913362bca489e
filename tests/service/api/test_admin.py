from __future__ import annotations

import pytest

from tests.support.fakes import FakeDetector
from tests.support.servers import serving

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("query", ["pause=perhaps", "pause=", "path=/etc/passwd"])
async def test_a_wrong_parameter_is_rejected(query: str) -> None:
    async with serving(FakeDetector(), enable_reload=True) as client:
        rejected = await client.post(f"/-/reload?{query}")
        assert (rejected.status_code, rejected.json()["type"]) == (422, "urn:faster-rcnn-service:bad-parameter")
        assert 'frcnn_reloads_total{result="ok"} 0.0' in (await client.get("/metrics")).text


@pytest.mark.parametrize("query", ["", "?pause=false", "?pause=0", "?pause=True", "?pause=1"])
async def test_a_reload_tells_what_is_served_now(query: str) -> None:
    async with serving(FakeDetector(), enable_reload=True) as client:
        answer = (await client.post(f"/-/reload{query}")).json()
        assert answer["model"] == (await client.get("/healthz")).json()["model"]
        assert answer["seconds"] >= 0
        assert 'frcnn_reloads_total{result="ok"} 1.0' in (await client.get("/metrics")).text


async def test_without_the_setting_there_is_no_such_path_and_with_keys_it_needs_one() -> None:
    async with serving(FakeDetector()) as client:
        assert (await client.post("/-/reload")).status_code == 404
    async with serving(FakeDetector(), enable_reload=True, api_keys="key-0123456789abcdef") as client:
        assert (await client.post("/-/reload")).status_code == 401
        assert (await client.get("/-/reload", headers={"X-API-Key": "key-0123456789abcdef"})).status_code == 405
