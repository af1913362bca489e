"""A request and its answer on a connection, as uvicorn has them, with fewer copies and steps.

uvicorn copies a body three times on its way to the application, stops and resumes reading for each of more than 64 KB,
looks at every header of an answer twice, and tells of a caller who hangs up only to whoever waits to be told.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

_EXTENSION = "frcnn.exchange"  # of ASGI's scope: the exchange
# Headers that say how an answer ends. uvicorn knows what to do about each.
_FRAMING = {b"connection", b"transfer-encoding"}
_PLAIN_HEAD = re.compile(rb"HTTP/1\.1 [^\x00-\x1f\x7f]*\r\n(?:[a-z0-9-]+: [^\x00-\x08\x0a-\x1f\x7f]*\r\n)*\r\n")
# Requests on a connection, behind the one at work: from so many on no more are read, and at most are any taken.
_MANY_WAITING, _MOST_WAITING = 4, 100


class Exchange(RequestResponseCycle):
    """One request, and its answer.

    An answer waits for its body, and is written at once with it.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.pieces: list[bytes] = []  # of the body, that nobody has asked for yet
        self.size = 0  # of them
        self._start: Any = None  # the beginning of an answer whose body has not come yet
        self._when_gone: Callable[[], None] | None = None
        given["scope"]["extensions"] = {_EXTENSION: self}

    @property
    def awaits_reader(self) -> bool:
        """Whether so much of the body has come unread that no more should."""
        return self.size > HIGH_WATER_LIMIT and self.more_body and not self.response_complete

    async def receive(self) -> Any:
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            if self.more_body:
                self.flow.resume_reading()
            await self.message_event.wait()
            self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        pieces, self.pieces, self.size = self.pieces, [], 0
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start" and not self.response_started:
            self._start = message  # in place of one before it: that is uvicorn's answer to a failure since
            return
        if self._start is not None:
            if self.flow.write_paused and not self.disconnected:
                await self.flow.drain()
            start, self._start = self._start, None
            if not message.get("more_body", False) and (whole := self._whole(start, message.get("body", b""))):
                self._finish(whole)
                return
            await super().send(start)
        await super().send(message)

    async def run_asgi(self, app: Any) -> None:
        try:
            await super().run_asgi(app)
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Of what nobody will ask for any more, and of rings that only the collector would open."""
        self.pieces, self.size = [], 0
        self._when_gone = None
        self.on_response = lambda: None
        self.scope.pop("extensions", None)

    def hang_up(self) -> None:
        """The caller is gone."""
        if self.response_complete:
            return
        self.disconnected = True
        self.message_event.set()
        if self._when_gone is not None:
            self._when_gone()

    def tell_when_gone(self, callback: Callable[[], None] | None) -> None:
        """Have something called if the caller hangs up; with None, no more."""
        self._when_gone = callback
        if callback is not None and self.disconnected:
            callback()

    def _whole(self, start: Any, body: bytes) -> bytes | None:
        """An answer that is plainly framed; None where uvicorn has to see to it."""
        status, headers = start["status"], [*self.default_headers, *start["headers"]]
        named = dict(headers)
        if (
            len(named) < len(headers)
            or named.get(b"content-length") != b"%d" % len(body)
            or not named.keys().isdisjoint(_FRAMING)
            or not self.keep_alive
            or self.scope["method"] == "HEAD"
        ):
            return None
        lines = [STATUS_LINE[status], *[b"%b: %b\r\n" % (name, value) for name, value in headers], b"\r\n"]
        head = b"".join(lines)
        if head.count(b"\n") > len(lines) or _PLAIN_HEAD.fullmatch(head) is None:
            return None  # uvicorn tells what is wrong
        return head + body

    def _finish(self, whole: bytes) -> None:
        if self.disconnected:
            return
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.transport.write(whole)
        self.message_event.set()
        self.on_response()


def exchange_of(scope: Scope) -> Exchange | None:
    """A request's exchange; None under another server."""
    found: Exchange | None = (scope.get("extensions") or {}).get(_EXTENSION)
    return found


def body_is_whole(scope: Scope) -> bool:
    """Whether all of the body is known to be there, so that nothing has to be waited for."""
    exchange = exchange_of(scope)
    return exchange is not None and not exchange.more_body


class ExchangeProtocol(HttpToolsProtocol):
    """HTTP/1.1, an exchange after the other. No websockets, no bound on how many connections at once.

    A connection is read on while a request is at work, to learn of a caller who hangs up, until some wait behind it, or
    one with a large body.
    """

    cycle: Exchange
    deaf = False  # whether nothing that still comes is heard, and the connection ends with the last answer
    _running: Exchange | None = None

    def data_received(self, data: bytes) -> None:
        if self.deaf:
            return
        super().data_received(data)
        self._pause_if_full()

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= _MOST_WAITING:
            self.hear_no_more()
            raise ValueError("too many requests on a connection")  # the parser stops
        version = self.parser.get_http_version()
        url = httptools.parse_url(self.url)
        scope: Any = self.scope
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["raw_path"] = url.path
        scope["path"] = unquote(url.path.decode("ascii"))
        scope["query_string"] = url.query or b""
        before = self.cycle
        self.cycle = Exchange(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if self.parser.should_upgrade():  # it skips the body, and would take what is left of it for a request
            self.hear_no_more()
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        exchange = self.cycle
        if not exchange.response_complete:
            exchange.pieces.append(body)
            exchange.size += len(body)
            exchange.message_event.set()

    def on_message_complete(self) -> None:
        exchange = self.cycle
        if not exchange.response_complete:
            exchange.more_body = False
            exchange.message_event.set()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._pause_if_full()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._running is not None:
            self._running.hang_up()
        while self.pipeline:
            self.pipeline.pop()[0].let_go()  # type: ignore[attr-defined]

    def hear_no_more(self) -> None:
        """End the connection with the answer to the last request that has come."""
        self.deaf, self.cycle.keep_alive = True, False

    def drop_what_never_came_whole(self) -> None:
        """The last request on the connection, if its body is not all there and its turn has not come."""
        if self.pipeline and self.cycle.more_body:
            self.pipeline.popleft()[0].let_go()  # type: ignore[attr-defined]
            self.cycle = self.pipeline[0][0] if self.pipeline else self._running  # type: ignore[assignment]

    def _pause_if_full(self) -> None:
        exchange = self.cycle
        if len(self.pipeline) >= _MANY_WAITING or (exchange is not None and exchange.awaits_reader):
            self.flow.pause_reading()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)
