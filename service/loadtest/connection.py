"""HTTP/1.1 for one purpose: the same few requests, as cheaply as Python can send them.

A load test measures its own cost along with the service's. httpx takes many times the processor time of this, and where
answers are fast it is busy before the service is (docs/load-testing.md has the figures).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import httptools

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

_MOST_KEPT_BYTES = 4096  # of a refusal, to tell its reason


class LeanTransport:
    """Keeps connections that carry no request for the next ones."""

    def __init__(self, plan: Plan, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._target = plan.target
        self._timeout_s = plan.timeout_s
        self._ssl = plan.target.ssl_context()
        self._idle: list[Connection] = []
        lines = [f"POST {plan.target.path} HTTP/1.1", f"Host: {plan.target.host}:{plan.target.port}"]
        lines += [f"{name}: {value}" for name, value in plan.headers()]
        self._requests = [
            "\r\n".join([*lines, f"Content-Length: {len(image)}\r\n\r\n"]).encode() + image for image in plan.images
        ]

    def send(self, image: int, on_reply: OnReply) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                connection.request(self._requests[image], self._timeout_s + GRACE_S, on_reply)
                return
        self._tasks.create_task(self._send_by_a_new_connection(image, on_reply))

    async def close(self) -> None:
        for connection in self._idle:
            connection.close()

    async def _send_by_a_new_connection(self, image: int, on_reply: OnReply) -> None:
        began = time.monotonic()
        failure = LOST
        try:
            async with asyncio.timeout(self._timeout_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self._idle.append), self._target.host, self._target.port, ssl=self._ssl
                )
        except TimeoutError:
            failure = NO_CONNECTION_IN_TIME
        except OSError as error:
            failure = no_connection(error)
        else:
            if connection.is_open:
                connection.request(self._requests[image], self._timeout_s + GRACE_S, on_reply)
                return
        on_reply(failure, began, time.monotonic(), b"")


class Connection(asyncio.Protocol):
    """A connection that is kept alive and carries one request at a time.

    Args:
        on_idle: called when it can carry the next request, before the reply is told.
    """

    def __init__(self, on_idle: Callable[[Connection], None]) -> None:
        self._on_idle = on_idle
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._on_reply: OnReply | None = None
        self._sent = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timing = b""
        self._kept: list[bytes] = []
        self.is_open = False

    def request(self, data: bytes, timeout_s: float, on_reply: OnReply) -> None:
        """Send `data`, a whole request, and tell how it ended: once, and never before this returns."""
        assert self._transport is not None, "not connected: this is a bug"
        assert self._on_reply is None, "it carries one request at a time: this is a bug"
        self._on_reply = on_reply
        self._sent = time.monotonic()
        self._timing = b""
        self._kept.clear()
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._give_up, TIMED_OUT)
        self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._parser = httptools.HttpResponseParser(self)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._reply(LOST)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._give_up(GARBLED)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"server-timing":
            self._timing = b"%s, %s" % (self._timing, value) if self._timing else value

    def on_body(self, body: bytes) -> None:
        if self._parser.get_status_code() != 200 and sum(map(len, self._kept)) < _MOST_KEPT_BYTES:
            self._kept.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 or self._on_reply is None:
            return
        keeps = self._parser.should_keep_alive()
        if keeps:
            self._on_idle(self)
        self._reply("" if status == 200 else refusal(status, b"".join(self._kept)))
        if not keeps:
            self.close()

    def _give_up(self, failure: str) -> None:
        self._reply(failure)
        self.close()

    def _reply(self, failure: str) -> None:
        if self._on_reply is None or self._timer is None:
            return
        self._timer.cancel()
        # Who is told may send the next request by this connection at once.
        reply, self._on_reply = self._on_reply, None
        reply(failure, self._sent, time.monotonic(), self._timing)
