"""What Serve's own proxies say, in the words of this service. Needs no Ray.

Serve answers some requests without a replica: when all are full, when one is lost with what it was working on, when
none has come up. It does so in plain text, or not at all. To have them answered by problem documents, as all others
are, set on every node, before Ray is started:

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=service.scale.proxy.middlewares
"""

from __future__ import annotations

import asyncio
import logging

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import DeadlineError, QueueFullError, ServiceError, UnavailableError
from service.problems import error_response
from service.settings import TIMEOUT_HEADER, Settings, timeout_ms

logger = logging.getLogger(__name__)

_ID = "x-request-id"
_SERVES_PATHS = "/-/"  # its probe and its routes
_SERVES_STATUSES = {408, 429, 500, 503}  # in plain text they are Serve's own; a 404 is about paths that are not ours
_RETRY_S = 1
# A replica keeps the deadline by itself. The proxy's is for a request that is with none, so it comes a little later.
_GRACE_S = 1.0
_LOGGED_BYTES = 1000


def middlewares() -> list[Middleware]:
    """What Serve's callback asks for."""
    return [Middleware(InOurWords, request_timeout_ms=Settings().request_timeout_ms)]


class InOurWords:
    """Make a problem document of what Serve answers by itself, and of no answer at all. What a replica says passes.

    Also tells Serve the caller's deadline, for as long as no replica knows it.

    Args:
        app: Serve's.
        request_timeout_ms: of a request that sets none.
    """

    def __init__(self, app: ASGIApp, *, request_timeout_ms: int) -> None:
        self.app = app
        self._request_timeout_ms = request_timeout_ms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_SERVES_PATHS):
            await self.app(scope, receive, send)
            return
        self._tell_deadline(scope)
        answer = _Answer(scope, receive, send)
        try:
            await self.app(scope, receive, answer.send)
        except asyncio.CancelledError:
            await answer.end(lost=False)  # the caller has left, or Serve has ended this after its own answer
            raise
        except Exception:
            await answer.end()
            raise
        # Where the replica is lost, Serve's proxy ends without an answer.
        await answer.end()

    def _tell_deadline(self, scope: Scope) -> None:
        """In the header that Serve reads. It takes the last one, so that no caller can do without a deadline."""
        milliseconds = timeout_ms(Headers(scope=scope).get(TIMEOUT_HEADER, "")) or self._request_timeout_ms
        seconds = f"{milliseconds / 1000 + _GRACE_S:g}".encode()
        scope["headers"] = [*scope["headers"], (b"x-request-timeout-seconds", seconds)]


class _Answer:
    """One answer on its way: a replica's is sent on, Serve's own is withheld until its end."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._started = False
        self._withheld: ServiceError | None = None
        self._status, self._text = 0, b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = Headers(raw=list(message["headers"]))
            if message["status"] in _SERVES_STATUSES and headers.get("content-type", "").startswith("text/plain"):
                self._status, self._withheld = message["status"], _error(message["status"], headers)
            else:
                message["headers"] = _with_one_id(list(message["headers"]))
                self._started = True
        elif self._withheld is not None and len(self._text) < _LOGGED_BYTES:
            self._text += message.get("body", b"")
        if self._withheld is None:
            await self._send(message)

    async def end(self, *, lost: bool = True) -> None:
        """Say what was withheld, or that the replica was lost, if nothing has been sent."""
        if self._started or (self._withheld is None and not lost):
            return
        request_id = Headers(scope=self._scope).get(_ID, "")  # Serve has given one by now
        if self._withheld is not None:
            level = logging.WARNING if self._status == 500 else logging.INFO  # the others say what is usual
            text = self._text[:_LOGGED_BYTES].decode(errors="replace")
            logger.log(level, "Serve answered %s with %d: %r", request_id, self._status, text)
        self._scope["state"] = {**self._scope.get("state", {}), "request_id": request_id}
        answer = error_response(self._scope, self._withheld or _lost(), {"X-Request-ID": request_id})
        await answer(self._scope, self._receive, self._send)


def _error(status: int, headers: Headers) -> ServiceError:
    if status == 408:
        return DeadlineError("the time for this request was over before a replica took it")
    retry_after = headers.get("retry-after", "")
    retry_after_s = int(retry_after) if retry_after.isdecimal() else _RETRY_S
    if status == 429:
        return QueueFullError("every replica is full, and so is the queue before them", retry_after_s=retry_after_s)
    if status == 503:
        return UnavailableError("there is no replica", retry_after_s=retry_after_s)
    return _lost()


def _lost() -> UnavailableError:
    return UnavailableError("the replica that worked on this was lost", retry_after_s=_RETRY_S)


def _with_one_id(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """A replica that did not take the caller's id has given its own, before Serve added the caller's."""
    ids = [pair for pair in headers if pair[0].lower() == _ID.encode()]
    return [pair for pair in headers if pair[0].lower() != _ID.encode()] + ids[:1]
