"""Composition root of the service: settings and detectors in, ASGI application out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service import schemas
from service.detector import load_detectors
from service.errors import PROBLEM_TYPE, BadParameterError, ServiceError, problem
from service.lifecycle import LoadDetectors, Service
from service.middleware import RequestContext
from service.pipeline import ClientGoneError
from service.routes import router
from service.settings import Settings

_CLIENT_CLOSED_REQUEST = 499  # nobody reads it: it is what the log and the metrics count
_DESCRIPTION = "POST an image, get boxes, labels and scores. Boxes are in pixels of the upright image."


def create_app(
    settings: Settings | None = None,
    *,
    load: LoadDetectors = load_detectors,
    on_hopeless: Callable[[], None] | None = None,
) -> FastAPI:
    """Build the application. It starts to load the model when its lifespan begins.

    Args:
        settings: by default those of the environment.
        load: makes the detectors, one per device.
        on_hopeless: called when the service will never answer, or not again, and its process should end.
    """
    service = Service(settings or Settings(), load, on_hopeless)
    app = FastAPI(
        title="faster-rcnn-service",
        version=service.version,
        description=_DESCRIPTION,
        lifespan=_lifespan,
        redirect_slashes=False,
    )
    app.state.service = service
    app.add_middleware(RequestContext, metrics=service.metrics)
    app.include_router(router)
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientGoneError, _client_gone)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    _document_problems(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    await service.start()
    try:
        yield
    finally:
        await service.stop()


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return _problem_response(request, error.status, error.code, error.detail, error.headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    detail = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
    return _problem_response(request, BadParameterError.status, BadParameterError.code, detail)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "no-such-path", 405: "wrong-method"}.get(error.status_code, "http-error")
    detail = f"{request.method} {request.url.path}: {error.detail}"
    return _problem_response(request, error.status_code, code, detail, dict(error.headers or {}))


async def _client_gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


def _problem_response(
    request: Request, status: int, code: str, detail: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    body = problem(status=status, code=code, detail=detail, request_id=request.state.request_id)
    return JSONResponse(body, status_code=status, headers=headers, media_type=PROBLEM_TYPE)


def _document_problems(app: FastAPI) -> None:
    """Put `Problem` into the OpenAPI document, and take out FastAPI's own error schemas, which are never sent."""
    generate = app.openapi

    def openapi() -> dict[str, object]:
        if app.openapi_schema is None:
            document = generate()
            components = document["components"]["schemas"]
            components["Problem"] = schemas.Problem.model_json_schema()
            for unused in ("HTTPValidationError", "ValidationError"):
                components.pop(unused, None)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
