"""The protocol's part of the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from service.api import openapi
from service.oip.tensors import OUTPUTS
from service.settings import MODELS
from service.wire import LENGTH_HEADER

VERSION = "1"
_BINARY = {"type": "string", "format": "binary"}
_TENSOR = {
    "title": "InferInput",
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string", "enum": ["image"]},
        "datatype": {"type": "string", "enum": ["BYTES", "UINT8"]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "data": {"type": "array", "items": {}, "description": "One string of base64 (BYTES), or numbers (UINT8)."},
        "parameters": {
            "title": "InferInputParameters",
            "type": "object",
            "properties": {"binary_data_size": {"type": "integer", "description": "If the data follows the JSON."}},
        },
    },
}
_OUTPUT = {
    "title": "InferRequestedOutput",
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "enum": [output["name"] for output in OUTPUTS]},
        "parameters": {
            "title": "InferRequestedOutputParameters",
            "type": "object",
            "properties": {"binary_data": {"type": "boolean", "description": "Whether it goes after the JSON."}},
        },
    },
}
_PARAMETERS = {
    "title": "InferParameters",
    "type": "object",
    "properties": {
        "score_threshold": {
            "anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "string"}],
            "description": "For every class, or as in 0.5,person:0.8.",
        },
        "max_detections": {"type": "integer", "minimum": 1, "maximum": 100},
        "labels": {"type": "string", "description": "Names or ids, separated by commas."},
        "iou_threshold": {"type": "number", "minimum": 0, "maximum": 1, "description": "At most the model's own."},
        "class_agnostic": {"type": "boolean"},
        "timeout": {"type": "integer", "minimum": 0, "description": "Microseconds; 0 for the usual."},
        "binary_data_output": {"type": "boolean", "description": "Whether all outputs go after the JSON."},
    },
}
_REQUEST = {
    "title": "InferRequest",
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": _TENSOR},
        "id": {"type": "string", "description": "Returned in the answer."},
        "parameters": _PARAMETERS,
        "outputs": {"type": "array", "items": _OUTPUT, "description": "Those to send; all by default."},
    },
}
_LENGTH_PARAMETER = {
    "name": LENGTH_HEADER,
    "in": "header",
    "description": "How many bytes of the body are JSON, where the tensor's data follows it.",
    "schema": {"type": "integer", "minimum": 0},
}
_MODEL_PARAMETER = {
    "name": "model",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "enum": list(MODELS)},
}


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class ModelReady(BaseModel):
    name: str
    ready: bool


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InferOutput(BaseModel):
    """A tensor; its numbers are flat, or after the JSON where `binary_data` was asked for."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float] = []
    parameters: dict[str, int] = {}


class InferResponse(BaseModel):
    model_name: str
    model_version: str
    outputs: list[InferOutput]
    id: str | None = None


READY_RESPONSES: dict[int | str, dict[str, Any]] = {503: {"description": "Loading, draining or failing"}}
MODEL_REQUEST = {"parameters": [_MODEL_PARAMETER]}
MODEL_RESPONSES = openapi.oip_errors(404)
MODEL_READY_RESPONSES = {**MODEL_RESPONSES, **READY_RESPONSES}
INFER_REQUEST = {
    "parameters": [_MODEL_PARAMETER, _LENGTH_PARAMETER, *openapi.DETECT_REQUEST["parameters"]],
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
    **openapi.oip_errors(400, 404, 408, 413, 415, 422, 429, 500, 503, 504),
}
