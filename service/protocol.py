"""HTTP/1.1 as uvicorn speaks it, less two traps."""

from __future__ import annotations

import asyncio
import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OFFER = re.compile(rb"\r\nUpgrade:(?=[ \t]*h2c[ \t]*\r\n)", re.IGNORECASE)
_LONGEST_HEAD_BYTES = 16_384


class UpgradeDecliningProtocol(HttpToolsProtocol):
    """Decline offers to go on in HTTP/2, which clients such as Java's make with every first request.

    A server is free to ignore the offer (RFC 9110, section 7.8). uvicorn's parser takes it for accepted, and drops the
    body that follows. So the offer's header gets another name of the same length before the parser sees it.
    """

    def data_received(self, data: bytes) -> None:
        head = data[:_LONGEST_HEAD_BYTES]
        if _OFFER.search(head):
            data = _OFFER.sub(b"\r\nOffered:", head) + data[_LONGEST_HEAD_BYTES:]
        super().data_received(data)


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
        if self.cycle is not None and self.cycle.response_complete:
            self._wait_for_head()
        super().data_received(data)

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
