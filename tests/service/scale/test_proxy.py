"""Serve's own answers, as its proxy sends them, behind the middleware."""

from __future__ import annotations

import asyncio
import logging

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.scale.proxy import middlewares

pytestmark = pytest.mark.anyio


def behind(app: ASGIApp) -> httpx.AsyncClient:
    for middleware in reversed(middlewares()):
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://proxy")


class Serve:
    """Answers like Serve's proxy: it gives the request an id, and appends it to whatever goes back.

    Args:
        status: None for ending without an answer, as when a replica dies.
    """

    def __init__(self, status: int | None, *headers: tuple[bytes, bytes], body: bytes = b"words") -> None:
        self.status, self.headers, self.body = status, list(headers), body
        self.scope: Scope = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        given = [value for name, value in scope["headers"] if name == b"x-request-id"]
        request_id = given[0] if given else b"made"
        scope["headers"] = [*scope["headers"], *([] if given else [(b"x-request-id", request_id)])]
        if self.status is None:
            return
        headers = [*self.headers, (b"X-Request-ID", request_id)]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


TEXT = (b"content-type", b"text/plain; charset=utf-8")


@pytest.mark.parametrize(
    ("serve", "status", "code", "retry_after"),
    [
        (Serve(429, TEXT, (b"retry-after", b"7")), 429, "queue-full", "7"),
        (Serve(503, TEXT), 503, "unavailable", "1"),
        (Serve(500, TEXT), 503, "unavailable", "1"),
        (Serve(None), 503, "unavailable", "1"),
        (Serve(408, TEXT), 504, "deadline-passed", None),
    ],
)
async def test_serves_own_answers_are_problems(serve: Serve, status: int, code: str, retry_after: str | None) -> None:
    async with behind(serve) as client:
        response = await client.post("/detect", headers={"X-Request-ID": "mine"})
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == f"urn:faster-rcnn-service:{code}"
    assert response.json()["request_id"] == response.headers["x-request-id"] == "mine"
    assert response.headers.get("retry-after") == retry_after


async def test_an_id_that_serve_has_made_is_told() -> None:
    async with behind(Serve(None)) as client:
        response = await client.post("/detect")
    assert response.json()["request_id"] == response.headers["x-request-id"] == "made"


async def test_a_failure_in_the_proxy_is_answered_and_not_hidden() -> None:
    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("a bug of Serve's")

    async with behind(breaks) as client:
        with pytest.raises(RuntimeError, match="a bug"):
            await client.post("/detect")


@pytest.mark.parametrize("path", ["/v2/models/x/infer"])
async def test_under_the_protocol_it_has_the_protocols_form(path: str) -> None:
    async with behind(Serve(503, TEXT)) as client:
        assert (await client.post(path)).json() == {"error": "there is no replica"}


@pytest.mark.parametrize(
    ("status", "media_type"), [(200, b"text/plain"), (404, b"text/plain"), (500, b"application/problem+json")]
)
async def test_what_a_replica_says_passes(status: int, media_type: bytes) -> None:
    answer = Serve(status, (b"content-type", media_type), (b"server-timing", b"decode;dur=1"), body=b"x" * 10)
    async with behind(answer) as client:
        response = await client.get("/metrics")
    assert (response.status_code, response.content) == (status, b"x" * 10)
    assert response.headers["server-timing"] == "decode;dur=1"


async def test_one_id_is_told_that_of_the_replica() -> None:
    async with behind(Serve(200, (b"x-request-id", b"ours"))) as client:
        response = await client.get("/", headers={"X-Request-ID": "not one that is taken"})
    assert response.headers.get_list("x-request-id") == ["ours"]


async def test_serves_own_probe_is_left_alone() -> None:
    async with behind(Serve(503, TEXT)) as client:
        assert (await client.get("/-/healthz")).text == "words"


@pytest.mark.parametrize(
    ("given", "told"),
    [("1500", b"2.5"), (None, b"61"), ("", b"61"), ("soon", b"61"), ("0", b"61"), ("9" * 9, b"61"), ("9" * 12, b"61")],
)
async def test_serve_is_always_told_a_deadline(given: str | None, told: bytes) -> None:
    serve = Serve(200)
    headers = {"X-Request-Timeout-Seconds": "0"} | ({} if given is None else {"X-Request-Timeout-Ms": given})
    async with behind(serve) as client:
        await client.post("/detect", headers=headers)
    assert dict(serve.scope["headers"])[b"x-request-timeout-seconds"] == told  # as Serve reads it: the last


async def test_the_usual_deadline_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCNN_REQUEST_TIMEOUT_MS", "4000")
    serve = Serve(200)
    async with behind(serve) as client:
        await client.post("/detect")
    assert dict(serve.scope["headers"])[b"x-request-timeout-seconds"] == b"5"


@pytest.mark.parametrize(("status", "level"), [(500, logging.WARNING), (429, logging.INFO)])
async def test_what_serve_said_is_in_the_log(status: int, level: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "service.scale.proxy")
    async with behind(Serve(status, TEXT, body=b"a bug\nof Serve's")) as client:
        response = await client.post("/detect", headers={"X-Request-ID": "mine"})
    assert "a bug" not in response.text
    (record,) = caplog.records
    assert record.levelno == level
    assert record.getMessage() == f"""Serve answered mine with {status}: "a bug\\nof Serve's\""""


@pytest.mark.parametrize("serves", [False, True], ids=["the caller left", "Serve ended it after its answer"])
async def test_nothing_is_made_up_for_a_caller_who_has_left(serves: bool) -> None:
    sent: list[Message] = []

    async def ends(scope: Scope, receive: Receive, send: Send) -> None:
        if serves:
            await Serve(408, TEXT)(scope, receive, send)
        raise asyncio.CancelledError

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def keep(message: Message) -> None:
        sent.append(message)

    (middleware,) = middlewares()
    app = middleware.cls(ends, *middleware.args, **middleware.kwargs)
    with pytest.raises(asyncio.CancelledError):
        await app({"type": "http", "path": "/detect", "headers": []}, receive, keep)
    assert [message["status"] for message in sent if "status" in message] == ([504] if serves else [])
