"""Requests by httpx, as users' programs and `service.client` send them, and the words for how each ended."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import httpx

from service.loadtest.plan import Plan

# What went wrong (empty: nothing), when the request was written to a connection (if it never was, when it was handed
# over), when all was over, both on the monotonic clock, and the Server-Timing header.
OnReply: TypeAlias = Callable[[str, float, float, bytes], None]

LOST, TIMED_OUT, GARBLED = "connection lost", "no answer in time", "answer is not HTTP"
NO_CONNECTION_IN_TIME = "no connection in time"
_GRACE_S = 1.0  # after the service's own deadline, for its 504 to arrive
_WRITES = "http11.send_request_headers.started"  # httpcore's name of the moment
_HANGS_UP = ("Server disconnected", "peer closed connection")  # httpx has one error for this and for what is no HTTP


class Transport:
    """Send a plan's images over connections that are kept alive; open them as needed, and never wait for a free one.

    Each connection is a client of its own. One client for all of them would look at each of its connections, several
    times, for each request: at 64 that is most of its processor time. Proxies of the environment are not used: they
    would be measured, too.
    """

    def __init__(self, plan: Plan, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._images = plan.images
        self._timeout_s = plan.timeout_s + _GRACE_S
        self._url = httpx.URL(plan.target.origin + plan.target.path)
        self._headers = [httpx.Headers([*plan.headers(), ("Content-Length", str(len(i)))]) for i in plan.images]
        self._ssl = plan.target.ssl_context()
        self._idle: list[httpx.AsyncClient] = []
        self._exchanges: set[asyncio.Task[None]] = set()

    def send(self, image: int, on_reply: OnReply) -> None:
        """Post the plan's image of this number; `on_reply` is called once, and never before this returns."""
        task = self._tasks.create_task(self._exchange(image, on_reply, time.monotonic()))
        self._exchanges.add(task)
        task.add_done_callback(self._exchanges.discard)

    def cancel(self) -> None:
        """Give up the requests that are in flight: their `on_reply` is not called."""
        for task in self._exchanges:
            task.cancel()

    async def close(self) -> None:
        """Close the connections, none of which is in use."""
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
                failure = failed_answer(response.status_code, response.content)
            self._idle.append(client)
        # The callee may send the next request by this client at once.
        on_reply(failure, handed_over if sent is None else sent, time.monotonic(), timing)
        if not answered:
            await client.aclose()

    def _new_client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=1, keepalive_expiry=None)
        transport = httpx.AsyncHTTPTransport(verify=self._ssl or False, limits=limits, trust_env=False)
        # The time out is that of the whole exchange. httpx would begin again with each step of it.
        return httpx.AsyncClient(transport=transport, timeout=None, trust_env=False)  # noqa: S113


def _failure(error: httpx.HTTPError) -> str:
    garbled = isinstance(error, httpx.RemoteProtocolError) and not str(error).startswith(_HANGS_UP)
    return GARBLED if garbled else LOST


def failed_answer(status: int, body: bytes) -> str:
    """`429 queue-full`, from a problem document; the status alone if the body is none."""
    try:
        return f"{status} {json.loads(body)['type'].rpartition(':')[2]}"
    except (ValueError, TypeError, KeyError, AttributeError):
        return str(status)


def no_connection(error: BaseException) -> str:
    """`no connection: Connection refused`: what came first, in the system's words."""
    while first := error.__cause__ or error.__context__:
        error = first.exceptions[0] if isinstance(first, BaseExceptionGroup) else first  # one of a host's addresses
    words = error.strerror if isinstance(error, OSError) else None
    if isinstance(error, ssl.SSLCertVerificationError):
        words = error.verify_message
    return f"no connection: {(words or str(error)).split(':')[0]}"
