"""Composition root of the service: settings and detectors in, ASGI application out."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from service.api import openapi
from service.api.admin import router as admin_router
from service.api.job import ClientGoneError
from service.api.routes import detect_router, router
from service.api.swagger import FILES_PATH, docs_files
from service.api.swagger import router as docs_router
from service.deepstack.routes import router as deepstack_router
from service.devices.loading import load_detectors
from service.errors import (
    CLIENT_CLOSED_REQUEST,
    OTHER_CODES,
    RETRY_WITHOUT_MEMORY_S,
    ServiceError,
    UnavailableError,
)
from service.lifecycle import LoadDetectors, Service, service_version
from service.oip.routes import router as oip_router
from service.page.routes import STATIC, is_for_a_person, not_found_page
from service.page.routes import router as page_router
from service.settings import Settings
from service.telemetry.tracing import exporting_provider, request_telemetry, send_what_is_left
from service.web.auth import ApiKeys, load_keys, log_auth_mode
from service.web.middleware import RequestContext
from service.web.package_files import PackageFiles
from service.web.problems import error_response, has_own_form, problem_response, release_frames
from service.wire import KEY_HEADER, LENGTH_HEADER, PRIORITY_HEADER, REQUEST_ID_HEADER, TIMEOUT_HEADER

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

# What a web page of an allowed origin may send and read beyond the plainest. Never cookies: there are none.
_CORS: dict[str, Any] = {
    "allow_methods": ["GET", "POST"],
    "allow_headers": [
        "Authorization",
        KEY_HEADER,
        REQUEST_ID_HEADER,
        TIMEOUT_HEADER,
        PRIORITY_HEADER,
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
    on_fatal_error: Callable[[], None] | None = None,
    loaded_first: bool = False,
    tracer_provider: TracerProvider | None = None,
) -> FastAPI:
    """Build the application. It starts to load the model when its lifespan begins.

    Args:
        settings: by default those of the environment.
        load: makes the detectors, one per device.
        on_fatal_error: called when the service will never answer, or not again, and its process should end.
        loaded_first: whether the lifespan's start waits for the model, and fails where it cannot be loaded. By default
            requests are answered meanwhile, by saying that it loads.
        tracer_provider: where spans go; by default to the collector that the settings name.

    Raises:
        KeysError: the API keys cannot be used as they are given.
        TracingError: traces are asked for and cannot be sent.
    """
    settings = settings or Settings()
    keys = load_keys(settings)
    log_auth_mode(settings, keys)
    exporting = exporting_provider(settings, version=service_version()) if tracer_provider is None else None
    spans = tracer_provider or exporting
    service = Service(settings, load, on_fatal_error, spans)
    app = FastAPI(
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
    _add_middlewares(app, settings, keys)
    _add_routes(app)
    _add_errors(app)
    openapi.complete(app, keys_needed=bool(keys))
    return app


def _add_middlewares(app: FastAPI, settings: Settings, keys: frozenset[str]) -> None:
    # The last one is the outermost: an answer to a browser needs CORS headers even where the key is wrong.
    if keys:
        app.add_middleware(ApiKeys, keys=keys)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, **_CORS)
    app.add_middleware(RequestContext, metrics=app.state.service.metrics, access_log=settings.access_log)


def _add_routes(app: FastAPI) -> None:
    admin = [admin_router] if app.state.service.settings.enable_reload else []
    for part in (detect_router, router, oip_router, deepstack_router, page_router, docs_router, *admin):
        app.router.routes += part.routes  # `include_router` matches each request twice
    app.mount("/page", PackageFiles(directory=STATIC))
    app.mount(FILES_PATH, docs_files())


def _add_errors(app: FastAPI) -> None:
    """What is answered to each kind of failure."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientGoneError, _client_gone)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_exception_handler(MemoryError, _no_memory)


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


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, _ = OTHER_CODES.get(error.status_code, ("http-error", ""))
    detail = f"{request.method} {request.url.path}: {error.detail}"
    problem = problem_response(request.scope, status=error.status_code, code=code, detail=detail, headers=error.headers)
    if code != "http-error" and is_for_a_person(request) and not has_own_form(request.url.path):
        return not_found_page(request, HTTPStatus(error.status_code), error.headers)
    return problem


async def _no_memory(request: Request, error: Exception) -> Response:
    logger.warning("there was no memory for a request: %r", error.__cause__ or error)
    release_frames(error)
    return error_response(
        request.scope,
        UnavailableError("there is no memory left for this request", retry_after_s=RETRY_WITHOUT_MEMORY_S),
    )


async def _client_gone(_request: Request, error: Exception) -> Response:
    release_frames(error)
    return Response(status_code=CLIENT_CLOSED_REQUEST)
