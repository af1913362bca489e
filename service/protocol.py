"""HTTP/1.1 as uvicorn speaks it, less two traps."""

from __future__ import annotations

import logging
import re
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

logger = logging.getLogger(__name__)

_OFFER = re.compile(rb"\r\nUpgrade:(?=[ \t]*h2c[ \t]*\r\n)", re.IGNORECASE)
_LONGEST_HEAD_BYTES = 16_384


class BoundedProtocol(HttpToolsProtocol):
    """Close connections whose headers take more than `most_header_bytes`.

    uvicorn keeps every header for as long as they come, in the head of a request and in the trailers of its body, and
    nobody has shown a key by then.
    """

    most_header_bytes: ClassVar[int] = 65_536

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_bytes = 0  # of the message that is being read
        self._unparsed_bytes = 0  # since the parser last told of a head, a piece of a body, or an end

    def data_received(self, data: bytes) -> None:
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if max(self._header_bytes, self._unparsed_bytes) > self.most_header_bytes:
            self._refuse()

    def on_message_begin(self) -> None:
        self._header_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unparsed_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed_bytes = 0
        super().on_message_complete()

    def _refuse(self) -> None:
        if self.transport.is_closing():
            return
        logger.warning("a connection is closed: its headers have more than %d bytes", self.most_header_bytes)
        if self.cycle is None or self.cycle.response_complete:
            head = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            self.transport.write(head)
        self.transport.close()


class UpgradeDecliningProtocol(BoundedProtocol):
    """Decline offers to go on in HTTP/2, which clients such as Java's make with every first request.

    A server is free to ignore the offer (RFC 9110, section 7.8). uvicorn's parser takes it for accepted, and drops the
    body that follows. So the offer's header gets another name of the same length before the parser sees it.
    """

    def data_received(self, data: bytes) -> None:
        head = data[:_LONGEST_HEAD_BYTES]
        if _OFFER.search(head):
            data = _OFFER.sub(b"\r\nOffered:", head) + data[_LONGEST_HEAD_BYTES:]
        super().data_received(data)
