"""What happens around every request: an id, a count, and a last resort."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import PROBLEM_TYPE, problem
from service.metrics import Metrics

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "X-Request-ID"
# An id goes into logs and headers: short, and of characters that mean nothing there.
_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_UNROUTED = "none"


class RequestContext:
    """Give each request an id, count it, and turn an unforeseen exception into a problem document.

    Pure ASGI: wrapping the response, as Starlette's base class does, would hide the caller's hanging up.

    Args:
        app: the application.
        metrics: where to count.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s: unforeseen failure", request_id)
            if status:
                raise
            response = internal_error(request_id)
            await response(scope, receive, send_with_id)
        finally:
            route = _route(scope)
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.request_seconds.labels(route).observe(time.perf_counter() - started)


def internal_error(request_id: str) -> JSONResponse:
    detail = "something failed that should not have; the log tells what, under this request id"
    body = problem(status=500, code="internal", detail=detail, request_id=request_id)
    return JSONResponse(body, status_code=500, media_type=PROBLEM_TYPE)


def _request_id(headers: Headers) -> str:
    given = headers.get(REQUEST_ID_HEADER, "")
    return given if _ACCEPTABLE_ID.fullmatch(given) else uuid.uuid4().hex


def _route(scope: Scope) -> str:
    """The route's pattern: a label of few values, whatever paths are asked for."""
    route: Any = scope.get("route")
    return getattr(route, "path", _UNROUTED)
