"""Large answers, as fast as they are read."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_PIECE_BYTES = 1 << 18


class PacedResponse(Response):
    """Sends its body in pieces, each when the one before has been read.

    The server takes a whole body at once and keeps it until the caller has read it: the request would be over, and what
    it reserved released, while its answer is still in memory. This one is over when all but the last piece is read.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = memoryview(self.body)
        for start in range(0, len(body), _PIECE_BYTES):
            end = start + _PIECE_BYTES
            await send({"type": "http.response.body", "body": bytes(body[start:end]), "more_body": end < len(body)})
