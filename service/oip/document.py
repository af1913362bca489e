"""The protocol's part of the OpenAPI document."""

from __future__ import annotations

from typing import Any

from service import openapi
from service.detector import MODEL_NAME

VERSION = "1"
_BINARY = {"type": "string", "format": "binary"}
_TENSOR = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string", "enum": ["image"]},
        "datatype": {"type": "string", "enum": ["BYTES", "UINT8"]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "data": {"type": "array", "description": "One string of base64 (BYTES), or numbers (UINT8)."},
        "parameters": {"type": "object", "description": "`binary_data_size`, if the data follows the JSON."},
    },
}
_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {"inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": _TENSOR}},
}
_MODEL_PARAMETER = {
    "name": "model",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "enum": [MODEL_NAME]},
}


READY_RESPONSES: dict[int | str, dict[str, Any]] = {503: {"description": "Loading, draining or failing"}}
MODEL_REQUEST = {"parameters": [_MODEL_PARAMETER]}
MODEL_RESPONSES = openapi.protocol_errors(404)
MODEL_READY_RESPONSES = {**MODEL_RESPONSES, **READY_RESPONSES}
INFER_REQUEST = {
    "parameters": [_MODEL_PARAMETER, *openapi.DETECT_REQUEST["parameters"]],
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": _REQUEST}, "application/octet-stream": {"schema": _BINARY}},
    },
}
INFER_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The outputs; where they are binary, after the JSON",
        "content": {"application/octet-stream": {"schema": _BINARY}},
    },
    **openapi.protocol_errors(400, 404, 408, 413, 415, 422, 429, 500, 503, 504),
}
