"""HTTP/1.1 as uvicorn speaks it, less three traps."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

logger = logging.getLogger(__name__)

_OFFER = re.compile(rb"\r\nUpgrade:(?=[ \t]*h2c[ \t]*\r\n)", re.IGNORECASE)
_LONGEST_OFFERING_HEAD_BYTES = 16_384


class UpgradeDecliningProtocol(HttpToolsProtocol):
    """Decline offers to go on in HTTP/2, and end heads that never end.

    Clients such as Java's make that offer with every first request. A server is free to ignore it (RFC 9110, section
    7.8). uvicorn's parser takes it for accepted, and drops the body that follows. So the offer's header gets another
    name of the same length before the parser sees it.

    uvicorn keeps every header that arrives, for as long as they come: in the head of a request, and in the trailers of
    its body. Nobody has shown a key by then. So their bytes are bounded, and the time of a head.
    """

    head_timeout_s: ClassVar[float] = 20.0
    most_head_bytes: ClassVar[int] = 65_536

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_bytes = 0  # of the message that is being read
        self._unparsed_bytes = 0  # since the parser last told of anything whole
        self._awaits_head = True
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        head = data[:_LONGEST_OFFERING_HEAD_BYTES]
        if _OFFER.search(head):
            data = _OFFER.sub(b"\r\nOffered:", head) + data[_LONGEST_OFFERING_HEAD_BYTES:]
        if self._awaits_head and self._head_timer is None:
            self._start_head_timer()
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if max(self._header_bytes, self._unparsed_bytes) > self.most_head_bytes:
            self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        self._header_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unparsed_bytes = 0
        self._awaits_head = False
        self._stop_head_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed_bytes = 0
        self._awaits_head = True
        super().on_message_complete()

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        if self._is_answering():
            self._start_head_timer()  # the next request may be late while this one is answered
        else:
            self._refuse(b"408 Request Timeout")

    def _refuse(self, status: bytes) -> None:
        if self.transport.is_closing():
            return
        logger.warning("a connection is closed: %s", status.decode())
        if not self._is_answering():
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        self.transport.close()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete
