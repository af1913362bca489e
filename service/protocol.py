"""HTTP/1.1 as uvicorn speaks it, less one trap."""

from __future__ import annotations

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
