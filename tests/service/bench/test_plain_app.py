from __future__ import annotations

import httpx
import pytest

from service.bench.pictures import jpeg
from service.bench.plain_app import plain_app


@pytest.mark.anyio
async def test_the_plain_service_answers() -> None:
    transport = httpx.ASGITransport(plain_app("fasterrcnn_resnet50_fpn", "cpu"))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=120) as client:
        answer = (await client.post("/detect", content=jpeg((48, 64)))).json()
    assert answer.keys() == {"boxes", "labels", "scores"}
