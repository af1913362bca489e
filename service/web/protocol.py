"""HTTP/1.1 by uvicorn and h11, with a limit on idle time, and problem documents for what is no request.

h11 bounds the head of a request and the trailers of its body, insists on a Host, keeps trailers apart from headers,
declines offers to change the protocol, and reads one request at a time: the next one in a row waits, unread, until the
answer before it is written.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
from typing import Any, ClassVar, cast
from uuid import uuid4

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import PROBLEM_TYPE, BadRequestError, HeadTooLargeError, ServiceError, problem
from service.web.middleware import DEFAULT_HEADERS

MAX_HEAD_BYTES = 65_536  # that may wait for the end of a head; one that arrives in one read may be larger
_ANSWERING = (h11.SEND_RESPONSE, h11.SEND_BODY)
_LEAST_PROGRESS = 65_536  # bytes of an answer
_LAST_READ_S = 5.0
_LARGEST_HELD = 4096  # bytes of a write that waits for the next one


class LimitedProtocol(H11Protocol):
    """uvicorn's protocol, which closes connections that make no progress.

    uvicorn only limits how long a connection may be silent between two requests. Here a caller has `patience_s` to send
    a head, or the rest of a body that has been answered, and again for each 64 KiB of an answer that it reads, and
    `answer_s` to read all of it. Answers that nobody reads have a budget: beyond it the largest is aborted.
    """

    patience_s: ClassVar[float] = 20.0
    answer_s: ClassVar[float] = 60.0
    most_unsent: ClassVar[int] = 1 << 26  # bytes of all connections of the server

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting_since: float | None = None  # for a head; None while a request is answered
        self._unsent, self._unsent_since = math.inf, 0.0  # bytes of answers, when they last became fewer
        self._answering_since: float | None = None
        self._ends = False  # the server is stopping
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _JoinedWrites(transport, self.loop)))
        self._waiting_since = self.loop.time()
        self._watch = self.loop.call_later(self.patience_s / 4, self._check)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.our_state in _ANSWERING:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = self.loop.time()

    def pause_writing(self) -> None:
        """uvicorn's transport calls this when more than 64 KiB wait to be read."""
        super().pause_writing()
        paused = [one for one in self.connections if isinstance(one, LimitedProtocol) and one.flow.write_paused]
        unsent = {one: one.transport.get_write_buffer_size() for one in paused}
        while sum(unsent.values()) > self.most_unsent:
            largest = max(unsent, key=unsent.__getitem__)
            del unsent[largest]
            largest.transport.abort()

    def resume_writing(self) -> None:
        """uvicorn's transport calls this when most of that has been read."""
        self._unsent = math.inf
        super().resume_writing()

    def on_response_complete(self) -> None:
        self._unsent, self._answering_since = math.inf, None
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close, at once or after the answer in hand. An answer that is made has little time left to be read."""
        super().shutdown()
        self._ends = True
        if self.conn.our_state not in _ANSWERING:
            self.loop.call_later(_LAST_READ_S, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Send a problem document in place of uvicorn's line of text, and close."""
        too_large = getattr(sys.exception(), "error_status_hint", 400) == HeadTooLargeError.status
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(
                _last_answer(
                    HeadTooLargeError(f"the request's head has more than {MAX_HEAD_BYTES:,} bytes")
                    if too_large
                    else BadRequestError("this is not HTTP/1.1: the request line, a header, or the body's framing")
                )
            )
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # a second answer must not follow
            self.cycle.message_event.set()
        self.transport.close()

    def _check(self) -> None:
        now, unsent = self.loop.time(), self.transport.get_write_buffer_size()
        if not unsent or unsent <= self._unsent - _LEAST_PROGRESS:
            self._unsent, self._unsent_since = unsent or math.inf, now
        if self.conn.our_state is h11.SEND_BODY:
            self._answering_since = self._answering_since or now
        patience_s = min(self.patience_s, _LAST_READ_S) if self._ends else self.patience_s
        if (unsent and now - self._unsent_since >= patience_s) or (
            self._answering_since is not None and now - self._answering_since >= self.answer_s
        ):
            self.transport.abort()
        elif self._waiting_since is not None and now - self._waiting_since >= self.patience_s:
            self.transport.close()
        self._watch = self.loop.call_later(self.patience_s / 4, self._check)


class _JoinedWrites:
    """A transport that writes the head of an answer together with its body.

    uvicorn writes them one after the other, and each write is a call of the system, which costs as much as a good part
    of the application does.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write, or keep what is small until the next write, but no longer than this step of the event loop."""
        if self._head or len(data) > _LARGEST_HELD:
            head, self._head = self._head, b""
            self._transport.write(head + data if head else data)
        elif data:
            self._head = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def get_write_buffer_size(self) -> int:
        return len(self._head) + self._transport.get_write_buffer_size()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)


def _last_answer(error: ServiceError) -> bytes:
    request_id = uuid4().hex
    document = problem(status=error.status, code=error.code, detail=error.detail, request_id=request_id)
    body = json.dumps(document).encode()
    headers = {
        "Content-Type": PROBLEM_TYPE,
        "Content-Length": len(body),
        "X-Request-ID": request_id,
        "Connection": "close",
        **DEFAULT_HEADERS,
    }
    status = f"HTTP/1.1 {error.status.value} {error.status.phrase}"
    lines = [status, *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + body
