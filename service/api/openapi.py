"""The parts of the OpenAPI document that FastAPI cannot read off the routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from service.api.schemas import Health, Probe, Problem
from service.api.uploads import FILE_FIELD
from service.batching.batch_queue import PRIORITIES, Priority
from service.errors import PROBLEM_TYPE
from service.web.problems import is_deepstack_path, is_oip_path
from service.wire import KEY_HEADER, LONGEST_TIMEOUT_MS, PRIORITY_HEADER, PROBE_PATHS, TIMEOUT_HEADER

_BINARY = {"type": "string", "format": "binary"}
_PROTOCOL_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_DEEPSTACK_ERROR = {
    "type": "object",
    "required": ["success", "error", "duration"],
    "properties": {"success": {"const": False}, "error": {"type": "string"}, "duration": {"type": "number"}},
}
_MEANINGS = {
    400: "The body is broken, or is no image",
    401: "No API key, or a wrong one",
    404: "There is no such model",
    406: "The answer is JSON alone, and the caller takes only pictures",
    409: "The weights cannot be replaced",
    408: "The body came too slowly",
    413: "Too many bytes, pixels or files",
    415: "Not a type of image, or of body, that is taken",
    422: "A parameter or a header is out of range",
    429: "The queue is full, or too long for the deadline; `Retry-After` says when to try again",
    431: "The address and the headers are too long",
    500: "The device failed on this image",
    503: "Loading, draining or failing, or no memory for this image now",
    504: "The deadline passed",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can end in these problems."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": _MEANINGS[status], "content": {PROBLEM_TYPE: {"schema": schema}}} for status in statuses
    }


def oip_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same of a route of the Open Inference Protocol, which has a form of its own for them."""
    return _errors(_PROTOCOL_ERROR, statuses)


def deepstack_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same of DeepStack's route, which has another."""
    return _errors(_DEEPSTACK_ERROR, statuses)


def _errors(schema: dict[str, Any], statuses: tuple[int, ...]) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": schema}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in statuses}


def _form(field: dict[str, Any]) -> dict[str, Any]:
    return {"schema": {"type": "object", "required": [FILE_FIELD], "properties": {FILE_FIELD: field}}}


_IN_JSON = {
    "type": "object",
    "required": ["image"],
    "properties": {"image": {"type": "string", "format": "byte", "description": "The file in base64."}},
}
_TIMEOUT = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "description": "Milliseconds that the answer may take.",
    "schema": {"type": "integer", "minimum": 1, "maximum": LONGEST_TIMEOUT_MS},
}


def _priority(default: Priority) -> dict[str, Any]:
    return {
        "name": PRIORITY_HEADER,
        "in": "header",
        "description": "How soon the turn comes: `high` first.",
        "schema": {"type": "string", "enum": list(PRIORITIES), "default": default.name.lower()},
    }


_EVERY_PROBLEM = problems(400, 408, 413, 415, 422, 429, 500, 503, 504)

DETECT_REQUEST = {
    "parameters": [_TIMEOUT, _priority(Priority.NORMAL)],
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": _BINARY},
            "application/octet-stream": {"schema": _BINARY},
            "multipart/form-data": _form(_BINARY),
            "application/json": {"schema": _IN_JSON},
        },
    },
}
DETECT_RESPONSES = {
    200: {
        "description": "What was found, best first; or the picture with the boxes drawn",
        "content": {"image/jpeg": {"schema": _BINARY}, "image/png": {"schema": _BINARY}},
    },
    **_EVERY_PROBLEM,
}
BATCH_REQUEST = {
    "parameters": [_TIMEOUT, _priority(Priority.LOW)],
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": _form({"type": "array", "minItems": 1, "items": _BINARY})},
    },
}
BATCH_RESPONSES = {
    200: {"description": "A result or a problem for each file, in order"},
    **_EVERY_PROBLEM,
    **problems(406),
}
HEALTH_RESPONSES: dict[int | str, dict[str, Any]] = {503: {"description": _MEANINGS[503], "model": Health}}
READINESS_RESPONSES: dict[int | str, dict[str, Any]] = {503: {"description": _MEANINGS[503], "model": Probe}}
METRICS_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Metrics, in the format that `Accept` prefers",
        "content": {
            "text/plain": {"schema": {"type": "string"}},
            "application/openmetrics-text": {"schema": {"type": "string"}},
        },
    }
}

RELOAD_REQUEST = {
    "parameters": [
        {
            "name": "pause",
            "in": "query",
            "description": "Let the old model go before the new one is loaded.",
            "schema": {"type": "boolean", "default": False},
        }
    ]
}

_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": KEY_HEADER},
}


def complete(app: FastAPI, *, keys_needed: bool) -> None:
    """Document problems and keys, and not FastAPI's own error schemas, which are never sent."""
    generate = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            components = schema["components"]
            components["schemas"]["Problem"] = Problem.model_json_schema()
            for unused in ("HTTPValidationError", "ValidationError"):
                components["schemas"].pop(unused, None)
            _add_large_heads(schema["paths"])
            if keys_needed:
                components["securitySchemes"] = _SECURITY_SCHEMES
                _ask_for_keys(schema["paths"])
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _add_large_heads(paths: dict[str, dict[str, Any]]) -> None:
    """Any request may end so, before its path is known: always in a problem document."""
    told = problems(431)[431]
    for operations in paths.values():
        for operation in operations.values():
            operation["responses"]["431"] = told


def _errors_of(path: str) -> Callable[..., dict[int | str, dict[str, Any]]]:
    if is_oip_path(path):
        return oip_errors
    return deepstack_errors if is_deepstack_path(path) else problems


def _ask_for_keys(paths: dict[str, dict[str, Any]]) -> None:
    for path, operations in paths.items():
        if path not in PROBE_PATHS:
            unauthorized = _errors_of(path)(401)
            for operation in operations.values():
                operation["security"] = [{name: []} for name in _SECURITY_SCHEMES]
                operation["responses"] |= {str(status): told for status, told in unauthorized.items()}
