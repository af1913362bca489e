from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from service.telemetry.metrics import Metrics
from service.web.middleware import RequestContext
from tests.support.fakes import FakeDetector, red_png
from tests.support.servers import serving

pytestmark = pytest.mark.anyio
ORIGIN = "https://app.example"


def answering(response: Response) -> httpx.AsyncClient:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await response(scope, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(RequestContext(app, Metrics())), base_url="http://test")


@pytest.mark.parametrize("path", ["/livez", "/labels", "/nowhere", "/metrics", "/docs", "/detect"])
async def test_a_browser_may_do_nothing_with_an_answer(path: str) -> None:
    async with serving(FakeDetector()) as client:
        headers = (await client.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


async def test_a_route_may_set_its_own_headers_but_not_the_id() -> None:
    own = {"Content-Security-Policy": "default-src 'self'", "Cache-Control": "max-age=60", "X-Request-ID": "mine"}
    async with answering(Response("page", headers=own)) as client:
        headers = (await client.get("/", headers={"X-Request-ID": "given"})).headers
    assert headers["content-security-policy"] == "default-src 'self'"
    assert headers["cache-control"] == "max-age=60"
    assert headers["x-request-id"] == "given"
    assert headers["x-frame-options"] == "DENY"
    assert all(len(headers.get_list(name)) == 1 for name in headers)


async def test_other_sites_pages_may_not_call_by_default() -> None:
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    async with serving(FakeDetector()) as client:
        answer = await client.options("/detect", headers=preflight)
        assert answer.status_code == 405
        answers = [answer, await client.get("/labels", headers={"Origin": ORIGIN})]
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control")]


async def test_pages_of_allowed_origins_may_call() -> None:
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    preflight["Access-Control-Request-Headers"] = (
        "x-api-key, content-type, x-request-timeout-ms, x-priority, inference-header-content-length"
    )
    async with serving(FakeDetector(), cors_origins=f"{ORIGIN}, http://localhost:3000", api_keys="a-key") as client:
        allowed = await client.options("/detect", headers=preflight)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
        assert "access-control-allow-credentials" not in allowed.headers
        rejected = await client.options("/detect", headers=preflight | {"Origin": "https://evil.example"})
        assert rejected.status_code == 400
        answer = await client.post(
            "/detect", content=red_png(1), headers={"Origin": ORIGIN, "Authorization": "Bearer a-key"}
        )
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ORIGIN)
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
        assert "Inference-Header-Content-Length" in answer.headers["access-control-expose-headers"]
        other = await client.get("/labels", headers={"Origin": "https://evil.example", "Authorization": "Bearer a-key"})
        assert "access-control-allow-origin" not in other.headers
        # A page must be able to read why it is rejected.
        keyless = await client.get("/labels", headers={"Origin": ORIGIN})
        assert (keyless.status_code, keyless.headers["access-control-allow-origin"]) == (401, ORIGIN)


async def test_an_unforeseen_failure_is_a_problem_that_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("a secret of the inside")

    metrics = Metrics()
    transport = httpx.ASGITransport(RequestContext(app, metrics))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/", headers={"X-Request-ID": "abc"})
    assert (answer.status_code, answer.json()["request_id"]) == (500, "abc")
    assert "secret" not in answer.text
    assert "secret" in caplog.text
    assert 'frcnn_problems_total{code="internal"} 1.0' in metrics.exposition()[0].decode()


async def test_who_is_cut_off_at_the_end_of_the_process_is_told_so() -> None:
    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(20)

    async def receive() -> Message:
        return {"type": "http.request"}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    task = asyncio.create_task(RequestContext(endless, Metrics())(scope, receive, send))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert sent[0]["status"] == 503
    assert b"unavailable" in sent[1]["body"]
