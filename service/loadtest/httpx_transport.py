"""By httpx, as users' programs and `service.client` speak to the service."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from service.loadtest.plan import Plan
from service.loadtest.transport import (
    GARBLED,
    GRACE_S,
    LOST,
    NO_CONNECTION_IN_TIME,
    TIMED_OUT,
    OnReply,
    no_connection,
    refusal,
)

_WRITES = "http11.send_request_headers.started"  # httpcore's name of the moment
_HANGS_UP = ("Server disconnected", "peer closed connection")  # httpx has one error for this and for what is no HTTP


class HttpxTransport:
    """Each connection is a client of its own.

    One client for all of them would look at each of its connections, several times, for each request: at 64 that is
    most of its processor time. Proxies of the environment are not asked: they would be measured, too.
    """

    def __init__(self, plan: Plan, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._images = plan.images
        self._timeout_s = plan.timeout_s + GRACE_S
        self._url = httpx.URL(plan.target.url + plan.target.path)
        self._headers = [httpx.Headers([*plan.headers(), ("Content-Length", str(len(i)))]) for i in plan.images]
        self._ssl = plan.target.ssl_context()
        self._idle: list[httpx.AsyncClient] = []

    def send(self, image: int, on_reply: OnReply) -> None:
        self._tasks.create_task(self._exchange(image, on_reply, time.monotonic()))

    async def close(self) -> None:
        for client in self._idle:
            await client.aclose()

    async def _exchange(self, image: int, on_reply: OnReply, handed_over: float) -> None:
        sent: float | None = None

        async def trace(event: str, _: dict[str, Any]) -> None:
            nonlocal sent
            if event == _WRITES:
                sent = time.monotonic()

        client = self._idle.pop() if self._idle else self._new_client()
        request = httpx.Request(
            "POST", self._url, headers=self._headers[image], content=self._images[image], extensions={"trace": trace}
        )
        failure, timing, answered = "", b"", False
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await client.send(request)
        except TimeoutError:
            failure = NO_CONNECTION_IN_TIME if sent is None else TIMED_OUT
        except httpx.HTTPError as error:
            failure = no_connection(error) if sent is None else _failure(error)
        else:
            answered = True
            timing = response.headers.get("server-timing", "").encode("latin-1")
            if response.status_code != 200:
                failure = refusal(response.status_code, response.content)
            self._idle.append(client)
        # Who is told may send the next request by this client at once.
        on_reply(failure, handed_over if sent is None else sent, time.monotonic(), timing)
        if not answered:
            await client.aclose()

    def _new_client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=1, keepalive_expiry=None)
        transport = httpx.AsyncHTTPTransport(verify=self._ssl or False, limits=limits, trust_env=False)
        # The time out is that of the whole exchange. httpx would begin anew with each step of it.
        return httpx.AsyncClient(transport=transport, timeout=None, trust_env=False)  # noqa: S113


def _failure(error: httpx.HTTPError) -> str:
    garbled = isinstance(error, httpx.RemoteProtocolError) and not str(error).startswith(_HANGS_UP)
    return GARBLED if garbled else LOST
