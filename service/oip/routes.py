"""The protocol's routes. An image takes the same way as through `/detect`: budgets, deadline, batches."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from service.api.job import admit, service_of
from service.api.pipeline import ImageResult, detect_image, detect_pixels
from service.api.selection import Selection
from service.api.uploads import read_base64_body
from service.batching.batch_queue import Priority
from service.devices.detector import ModelInfo
from service.errors import BadParameterError, BadRequestError
from service.oip import document
from service.oip.document import VERSION
from service.oip.tensors import INPUT, OUTPUTS, InferRequest, read_request, reading_bytes, write_response
from service.settings import MODELS
from service.wire import LENGTH_HEADER

router = APIRouter(prefix="/v2", tags=["open inference protocol"], redirect_slashes=False)

_MODEL = "/models/{model}"
_VERSIONED = _MODEL + "/versions/{version}"


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live", response_model=document.Live)
async def live() -> Response:
    """200 while the process answers at all."""
    return JSONResponse({"live": True})


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", response_model=document.Ready, responses=document.READY_RESPONSES)
async def ready(request: Request) -> Response:
    """200 while requests are accepted, else 503."""
    return _readiness(request, {})


@router.head("", include_in_schema=False)
@router.get("", response_model=document.ServerMetadata)
async def server_metadata(request: Request) -> Response:
    """The server's name, version and extensions."""
    version = service_of(request).version
    return JSONResponse({"name": "faster-rcnn-service", "version": version, "extensions": ["binary_tensor_data"]})


@router.head(_MODEL, include_in_schema=False)
@router.head(_VERSIONED, include_in_schema=False)
@router.get(
    _MODEL,
    response_model=document.ModelMetadata,
    responses=document.MODEL_RESPONSES,
    openapi_extra=document.MODEL_REQUEST,
)
@router.get(_VERSIONED, include_in_schema=False)
async def model_metadata(request: Request) -> Response:
    """The model's input and outputs. The input is also taken as UINT8 `[height, width, 3]`."""
    description = {"name": _find_model(request), "versions": [VERSION], "platform": "pytorch"}
    return JSONResponse({**description, "inputs": [INPUT], "outputs": list(OUTPUTS)})


@router.head(_MODEL + "/ready", include_in_schema=False)
@router.head(_VERSIONED + "/ready", include_in_schema=False)
@router.get(
    _MODEL + "/ready",
    response_model=document.ModelReady,
    responses=document.MODEL_READY_RESPONSES,
    openapi_extra=document.MODEL_REQUEST,
)
@router.get(_VERSIONED + "/ready", include_in_schema=False)
async def model_ready(request: Request) -> Response:
    """200 while the model takes requests, else 503."""
    return _readiness(request, {"name": _find_model(request)})


@router.post(
    _MODEL + "/infer",
    response_model=document.InferResponse,
    responses=document.INFER_RESPONSES,
    openapi_extra=document.INFER_REQUEST,
)
@router.post(_VERSIONED + "/infer", include_in_schema=False)
async def infer(request: Request) -> Response:
    """Detect objects in one image.

    The parameters `score_threshold`, `max_detections`, `labels`, `iou_threshold` and `class_agnostic` choose as they do
    in `/detect`; `timeout` is in microseconds.
    """
    _find_model(request)
    async with admit(request, Priority.NORMAL) as job:
        length = request.headers.get(LENGTH_HEADER)
        body = await job.read(read_base64_body, body_bytes=job.settings.max_body_bytes)
        with job.working(reading_bytes(body, length)):
            reading = job.in_thread(partial(read_request, body, length))
            del body
            asked = await reading
        _selection(asked, job.batcher.info)  # a wrong one is rejected before the image is decoded
        if asked.timeout_s is not None:
            job.shorten(asked.timeout_s)
        image = asked.image
        result = await (detect_image(job, image) if isinstance(image, bytes) else detect_pixels(job, image))
        with job.stage("encode"):
            return _response(result, asked)


def _response(result: ImageResult, asked: InferRequest) -> Response:
    info = result.answer.info  # of the model that answered: it may have come meanwhile
    chosen = _selection(asked, info).apply(result.answer.detections)
    body, json_length = write_response(chosen, asked, model=info.name, version=VERSION)
    headers = {"Server-Timing": result.server_timing()}
    if json_length is None:
        return Response(body, media_type="application/json", headers=headers)
    return Response(body, media_type="application/octet-stream", headers={**headers, LENGTH_HEADER: str(json_length)})


def _selection(asked: InferRequest, info: ModelInfo) -> Selection:
    try:
        return asked.query.selection(info)
    except BadParameterError as error:
        raise BadRequestError(f"parameters: {error.detail}") from error


def _readiness(request: Request, body: dict[str, Any]) -> Response:
    is_ready = service_of(request).condition.status == "ok"
    return JSONResponse({**body, "ready": is_ready}, status_code=200 if is_ready else 503)


def _find_model(request: Request) -> str:
    """The name of the model that the path names. Until one is loaded, any that can be served counts."""
    # Not parameters of the routes: FastAPI would document a 422 that never comes.
    model, version = request.path_params["model"], request.path_params.get("version", VERSION)
    info = service_of(request).info
    names = MODELS if info is None else (info.name,)
    if model not in names or version != VERSION:
        raise HTTPException(
            404, f"there is no model {model!r} of version {version!r}; there is {' or '.join(names)}, {VERSION}"
        )
    return str(model)
