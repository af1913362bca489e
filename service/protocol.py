"""HTTP/1.1 as uvicorn speaks it, less three traps."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from typing import Any, ClassVar
from uuid import uuid4

from service.errors import PROBLEM_TYPE, BadRequestError, HeadTooLargeError, ServiceError, problem
from service.exchange import ExchangeProtocol
from service.middleware import DEFAULT_HEADERS

logger = logging.getLogger(__name__)

_OFFER = re.compile(rb"\r\nUpgrade:", re.IGNORECASE)
_BLANK = re.compile(rb"[\r\n]*")
_END_OF_HEAD = b"\r\n\r\n"
_LONGEST_HEAD_BYTES = 16_384


class BoundedProtocol(ExchangeProtocol):
    """Close connections whose headers take more than `most_header_bytes`.

    uvicorn keeps every header for as long as they come, in the head of a request and in the trailers of its body, and
    nobody has shown a key by then.
    """

    most_header_bytes: ClassVar[int] = 65_536

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0  # of the headers of the last head that came to its end
        self._unparsed_bytes = 0  # since the parser last told of a head, a piece of a body, or an end

    def data_received(self, data: bytes) -> None:
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > self.most_header_bytes and not self.deaf:
            self._refuse()

    def on_headers_complete(self) -> None:
        self._unparsed_bytes = 0
        self._head_bytes = sum([len(name) + len(value) for name, value in self.headers])
        if self._head_bytes > self.most_header_bytes:
            raise ValueError("this is no request that is begun")  # the parser stops, and `send_400_response` is called
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """A problem document, as of every other failure, in place of uvicorn's line of text.

        Neither the log of requests nor the metrics know of it: it is no request yet, or none any more.
        """
        if self.deaf:
            return
        if self._head_bytes > self.most_header_bytes:
            self._refuse()
            return
        self._end_with(
            BadRequestError(
                "this is not HTTP/1.1: the request, its address (65,535 bytes at most), or its body's framing"
            )
        )

    def _refuse(self) -> None:
        if self.transport.is_closing():
            return
        logger.warning("a connection is closed: its headers have more than %d bytes", self.most_header_bytes)
        self._end_with(HeadTooLargeError(f"the request's head has more than {self.most_header_bytes:,} bytes"))

    def _end_with(self, error: ServiceError) -> None:
        self.drop_what_never_came_whole()
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_last_answer(error))
        elif not self.cycle.more_body:  # it came behind a whole request, whose answer is still to come
            self.hear_no_more()
            return
        elif not self.cycle.response_started:
            self.cycle.hang_up()  # it can write nothing any more
            self.transport.write(_last_answer(error))
        self.transport.close()


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


class UpgradeDecliningProtocol(BoundedProtocol):
    """Decline offers to go on in another protocol, such as HTTP/2, which Java's client makes with every first request.

    A server is free to ignore the offer (RFC 9110, section 7.8). uvicorn's parser takes it for accepted, and drops the
    body that follows. So the offer's header gets another name of the same length before the parser sees it. One that is
    cut in two by packets, or comes in the same packet as another request, is not seen, as bodies are left as they are:
    its request goes without a body, and the connection ends with the answer.
    """

    _in_head = _in_body = False
    _last_bytes = b""  # that came; the end of a head may be cut in two

    def data_received(self, data: bytes) -> None:
        before = self._last_bytes if self._in_head else b""
        self._last_bytes = (before + data[-3:])[-3:]
        if not self._in_body and _OFFER.search(data, 0, end := _end_of_head(data, before)):
            data = _OFFER.sub(b"\r\nOffered:", data[:end]) + data[end:]
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()


def _end_of_head(data: bytes, before: bytes) -> int:
    """Where to stop looking for headers in what may begin with a head, or with blank lines before one.

    Args:
        before: up to three bytes that came before, if they were of the same head.
    """
    if before:
        end = (before + data[:3]).find(_END_OF_HEAD) - len(before)
        if end >= -len(before):
            return max(end, 0)
    blank = None if before else _BLANK.match(data)
    end = data.find(_END_OF_HEAD, blank.end() if blank else 0, _LONGEST_HEAD_BYTES)
    return _LONGEST_HEAD_BYTES if end < 0 else end + 2


class ImpatientProtocol(UpgradeDecliningProtocol):
    """Close connections on which no request comes to the end of its head within `head_timeout_s`.

    uvicorn only limits how long a connection may be silent between two requests: before the first, and while the bytes
    of a head drip, it waits for ever. (How long a body may take is a matter of the routes.)
    """

    head_timeout_s = 20.0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:  # it was not all of a head
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout_s, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
