"""Composition root of the service: settings and detectors in, ASGI application out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from service import openapi
from service.auth import KEY_HEADER, ApiKeys, load_keys, tell_who_may_call
from service.detector import load_detectors
from service.docs import FILES_PATH, docs_files
from service.docs import router as docs_router
from service.errors import OTHER_CODES, BadParameterError, ServiceError
from service.fast_lane import CLIENT_CLOSED_REQUEST, FastLane, takes
from service.lifecycle import LoadDetectors, Service, service_version
from service.middleware import REQUEST_ID_HEADER, RequestContext
from service.oip.routes import LENGTH_HEADER
from service.oip.routes import router as oip_router
from service.package_files import PackageFiles
from service.page.routes import STATIC, is_for_a_person, not_found_page
from service.page.routes import router as page_router
from service.pipeline import ClientGoneError
from service.problems import error_response, is_of_protocol, problem_response
from service.routes import detect_route, router
from service.schemas import DetectQuery
from service.settings import TIMEOUT_HEADER, Settings
from service.tracing import exporting_provider, request_telemetry, send_what_is_left

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

# What a web page of an allowed origin may send and read beyond the plainest. Never cookies: there are none.
_CORS: dict[str, Any] = {
    "allow_methods": ["GET", "POST"],
    "allow_headers": [
        "Authorization",
        KEY_HEADER,
        REQUEST_ID_HEADER,
        TIMEOUT_HEADER,
        openapi.PRIORITY_HEADER,
        LENGTH_HEADER,
        "traceparent",
    ],
    "expose_headers": [REQUEST_ID_HEADER, "Server-Timing", "Retry-After", "WWW-Authenticate", LENGTH_HEADER],
}
_DESCRIPTION = "POST an image, get boxes, labels and scores. Boxes are in pixels of the upright image."


def create_app(
    settings: Settings | None = None,
    *,
    load: LoadDetectors = load_detectors,
    on_hopeless: Callable[[], None] | None = None,
    loaded_first: bool = False,
    tracer_provider: TracerProvider | None = None,
) -> FastAPI:
    """Build the application. It starts to load the model when its lifespan begins.

    Args:
        settings: by default those of the environment.
        load: makes the detectors, one per device.
        on_hopeless: called when the service will never answer, or not again, and its process should end.
        loaded_first: whether the lifespan's start waits for the model, and fails where it cannot be loaded. By default
            requests are answered meanwhile, by saying that it loads.
        tracer_provider: where spans go; by default to the collector that the settings name.

    Raises:
        KeysError: the API keys cannot be used as they are given.
        TracingError: traces are asked for and cannot be sent.
    """
    settings = settings or Settings()
    keys = load_keys(settings)
    tell_who_may_call(settings, keys)
    exporting = exporting_provider(settings, version=service_version()) if tracer_provider is None else None
    spans = tracer_provider or exporting
    service = Service(settings, load, on_hopeless, spans)
    app = _Application(
        title="faster-rcnn-service",
        version=service.version,
        description=_DESCRIPTION,
        lifespan=partial(_lifespan, loaded_first=loaded_first, exporting=exporting),
        redirect_slashes=False,
        openapi_url=None,  # routes of ours: the metrics want names, and the page its own headers
        docs_url=None,
        redoc_url=None,
        telemetry=request_telemetry(spans),
    )
    app.state.service = service
    _add_middlewares(app, settings, keys, traced=spans is not None)
    _add_routes(app)
    _add_errors(app)
    openapi.complete(app, keys_needed=bool(keys))
    return app


class _Application(FastAPI):
    """FastAPI, and a short way around it."""

    fast_lane: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.fast_lane is not None and takes(scope):
            scope["app"] = self
            await self.fast_lane(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def _add_middlewares(app: _Application, settings: Settings, keys: frozenset[str], *, traced: bool) -> None:
    # The last one is the outermost: an answer to a browser needs CORS headers even where the key is wrong.
    around: list[Middleware] = []
    if keys:
        around.append(Middleware(ApiKeys, keys=keys))
    if settings.cors_origins:
        around.append(Middleware(CORSMiddleware, allow_origins=settings.cors_origins, **_CORS))
    around.append(Middleware(RequestContext, metrics=app.state.service.metrics, access_log=settings.access_log))
    for layer in around:
        app.add_middleware(layer.cls, *layer.args, **layer.kwargs)
    if not traced:  # FastAPI makes the span of a request on its own way to the route
        app.fast_lane = FastLane(route=detect_route)
        for layer in around:
            app.fast_lane = layer.cls(app.fast_lane, *layer.args, **layer.kwargs)


def _add_routes(app: FastAPI) -> None:
    app.include_router(router)
    app.include_router(oip_router)
    app.include_router(page_router)
    app.include_router(docs_router)
    app.mount("/page", PackageFiles(directory=STATIC))
    app.mount(FILES_PATH, docs_files())


def _add_errors(app: FastAPI) -> None:
    """What is answered to each kind of failure."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientGoneError, _client_gone)
    app.add_exception_handler(ClientDisconnect, _client_gone)


@asynccontextmanager
async def _lifespan(app: FastAPI, *, loaded_first: bool, exporting: TracerProvider | None) -> AsyncIterator[None]:
    service: Service = app.state.service
    await service.start()
    try:
        if loaded_first:
            await service.until_loaded()
        yield
    finally:
        await service.stop()
        if exporting is not None:
            await send_what_is_left(exporting)


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return error_response(request.scope, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(request.scope, BadParameterError("; ".join(map(_in_words, error.errors()))))


def _in_words(error: Mapping[str, Any]) -> str:
    name = ".".join(map(str, error["loc"][1:]))
    if error["type"] == "extra_forbidden":
        return f"{name}: there is no such parameter; there are {', '.join(DetectQuery.model_fields)}"
    return f"{name}: {error['msg']}"


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, _ = OTHER_CODES.get(error.status_code, ("http-error", ""))
    detail = f"{request.method} {request.url.path}: {error.detail}"
    problem = problem_response(request.scope, status=error.status_code, code=code, detail=detail, headers=error.headers)
    if code != "http-error" and is_for_a_person(request) and not is_of_protocol(request.url.path):
        return not_found_page(request, HTTPStatus(error.status_code), error.headers)
    return problem


async def _client_gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
