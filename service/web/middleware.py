"""Wraps every request: gives it an id and safe headers, counts and logs it, and answers unexpected exceptions.

It also rejects an invalid Host header: h11 checks only that there is one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from functools import cache
from typing import Any

from opentelemetry import trace
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BadRequestError, UnavailableError
from service.telemetry.logs import access_logger, request_id_of_this_task
from service.telemetry.metrics import Metrics
from service.web.problems import error_response, noted_problem, problem_response, release_frames
from service.wire import PROBE_PATHS, REQUEST_ID_HEADER

logger = logging.getLogger(__name__)

# What a browser may do with an answer: nothing but show it. A route that sends a page sets its own.
DEFAULT_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_RAW_ID_HEADER = REQUEST_ID_HEADER.lower().encode()
_RAW_DEFAULT_HEADERS = [(name.lower().encode(), value.encode()) for name, value in DEFAULT_HEADERS.items()]
_RAW_OURS = {_RAW_ID_HEADER, *(name for name, _ in _RAW_DEFAULT_HEADERS)}
# An id goes into logs and headers: short, and of characters that mean nothing there.
_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
# RFC 9110, section 7.2: a host with or without a port. The host may be empty. An address may name its zone (RFC 6874).
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%25[A-Za-z0-9._~-]+)?\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(:[0-9]*)?")
_UNROUTED = "none"
_LONGEST_METHOD = 16  # in the log; those of HTTP are shorter


class RequestContext:
    """Gives each request an id and its answer safe headers, counts and logs it, and answers unexpected exceptions.

    Pure ASGI: wrapping the response, as Starlette's base class does, would hide the caller's disconnect.

    Args:
        app: the application.
        metrics: where to count.
        access_log: whether to log a line for each request.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, access_log: bool = True) -> None:
        self.app = app
        self.metrics = metrics
        self.access_log = access_log
        self._counted = cache(metrics.requests.labels)  # routes and statuses are few

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = _request_id(headers.get(REQUEST_ID_HEADER, ""))
        scope.setdefault("state", {})["request_id"] = request_id
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attribute("frcnn.request_id", request_id)
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _with_defaults(message["headers"], request_id.encode())
            await send(message)

        token = request_id_of_this_task.set(request_id)
        self.metrics.requests_now += 1
        try:
            app = self.app if _HOST.fullmatch(headers.get("host", "")) else _reject_host
            await app(scope, receive, send_with_headers)
        except asyncio.CancelledError:  # the server does this when it has waited long enough for the process to end
            if not status:
                ended = UnavailableError("the service ended before the answer was ready")
                await error_response(scope, ended)(scope, receive, send_with_headers)
            raise
        except Exception as error:
            logger.exception("unexpected exception")
            release_frames(error)
            if status:
                raise  # the server ends the connection
            response = internal_error(scope)
            await response(scope, receive, send_with_headers)
        finally:
            self.metrics.requests_now -= 1
            self._account(scope, status, time.perf_counter() - started)
            request_id_of_this_task.reset(token)

    def _account(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route(scope)
        code = noted_problem(scope)
        self._counted(route, str(status)).inc()
        self.metrics.request_seconds.labels(route).observe(seconds)
        if code is not None:
            self.metrics.problems.labels(code).inc()
        if self.access_log:
            # Probes come every few seconds with the same answer; only a change is worth a line.
            level = logging.DEBUG if scope["path"] in PROBE_PATHS and status == 200 else logging.INFO
            # The path as asked for, and the query, are the caller's: they may hold anything.
            fields = {"method": scope["method"][:_LONGEST_METHOD], "route": route, "status": status}
            fields |= {"duration_ms": round(seconds * 1e3, 2)} | ({} if code is None else {"problem": code})
            line = "%(method)s %(route)s %(status)d %(duration_ms).1f ms" + ("" if code is None else " %(problem)s")
            access_logger.log(level, line, fields, extra=fields)


async def _reject_host(scope: Scope, receive: Receive, send: Send) -> None:
    """Reject a request whose Host header is invalid (RFC 9112, section 3.2)."""
    error = BadRequestError("the Host header is neither a name nor an address, with or without a port")
    await error_response(scope, error)(scope, receive, send)


def internal_error(scope: Scope) -> JSONResponse:
    detail = "something failed that should not have; the log tells what, under this request id"
    return problem_response(scope, status=500, code="internal", detail=detail)


def _with_defaults(own: list[tuple[bytes, bytes]], request_id: bytes) -> list[tuple[bytes, bytes]]:
    """An answer's headers, in lower case (ASGI), with the request's id and our own where it sets none."""
    given = {name for name, _ in own}
    if given.isdisjoint(_RAW_OURS):
        return [*own, (_RAW_ID_HEADER, request_id), *_RAW_DEFAULT_HEADERS]
    own = [header for header in own if header[0] != _RAW_ID_HEADER]
    defaults = [header for header in _RAW_DEFAULT_HEADERS if header[0] not in given]
    return [*own, (_RAW_ID_HEADER, request_id), *defaults]


def _request_id(given: str) -> str:
    return given if _ACCEPTABLE_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


def _route(scope: Scope) -> str:
    """The route's pattern: a label of few values, whatever paths are asked for."""
    route: Any = scope.get("route")
    # The files of the page have no route, but all lie where they are mounted.
    return getattr(route, "path", None) or scope.get("root_path") or _UNROUTED
