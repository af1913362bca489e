"""What Serve's own proxies say, in the words of this service. Needs no Ray.

Serve answers some requests without a replica: when all are full, when one is lost with what it was working on, when
none has come up. It does so in plain text, or not at all. To have them answered by problem documents, as all others
are, set on every node, before Ray is started:

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=service.scale.proxy.middlewares
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import DeadlineError, QueueFullError, ServiceError, UnavailableError
from service.problems import error_response

_ID = "x-request-id"
_SERVES_OWN = "/-/"  # its probe and its routes
_OF_REPLICAS = {408, 429, 500, 503}  # a 404 is about paths that are not the service's
_RETRY_S = 1
# A replica keeps the deadline by itself. The proxy's is for a request that is with none, so it comes a little later.
_GRACE_S = 1.0


def middlewares() -> list[Middleware]:
    """What Serve's callback asks for."""
    return [Middleware(InOurWords)]


class InOurWords:
    """Make a problem document of what Serve answers by itself, and of no answer at all. What a replica says passes.

    Also tells Serve the caller's deadline, for as long as no replica knows it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_SERVES_OWN):
            await self.app(scope, receive, send)
            return
        _tell_deadline(scope)
        started = False
        withheld: ServiceError | None = None

        async def send_in_our_words(message: Message) -> None:
            nonlocal started, withheld
            if message["type"] == "http.response.start":
                headers = Headers(raw=list(message["headers"]))
                if message["status"] in _OF_REPLICAS and headers.get("content-type", "").startswith("text/plain"):
                    withheld = _error(message["status"], headers)
                else:
                    message["headers"] = _with_one_id(list(message["headers"]))
                    started = True
            if withheld is None:
                await send(message)

        try:
            await self.app(scope, receive, send_in_our_words)
        finally:
            # Where the replica is lost, Serve's proxy ends without an answer.
            if not started:
                request_id = Headers(scope=scope).get(_ID, "")  # Serve has given one by now
                scope["state"] = {**scope.get("state", {}), "request_id": request_id}
                answer = error_response(scope, withheld or _lost(), {"X-Request-ID": request_id})
                await answer(scope, receive, send)


def _tell_deadline(scope: Scope) -> None:
    milliseconds = Headers(scope=scope).get("x-request-timeout-ms", "")
    if milliseconds.isdecimal() and len(milliseconds) < 10:
        seconds = f"{int(milliseconds) / 1000 + _GRACE_S:g}".encode()
        scope["headers"] = [*scope["headers"], (b"x-request-timeout-seconds", seconds)]


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
