"""HTTP routes. Per request: check the budgets, read the body, reserve its images, decode, detect, encode."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import lru_cache, partial
from typing import Any, TypeVar, get_type_hints

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from service.api import openapi, schemas
from service.api.job import admit, service_of
from service.api.pipeline import ImageResult, detect_image, detect_images, detect_tiles
from service.api.query import DetectParameters, DetectQuery, SelectionQuery, TiledParameters, parse_query
from service.api.schemas import FastJSONResponse
from service.api.uploads import read_files, read_image
from service.batching.batch_queue import Priority
from service.batching.decode_threads import cost_of
from service.batching.shared_queue import Answer
from service.devices.detector import Detections, ModelInfo
from service.errors import NotAcceptableError, ServiceError, UnavailableError
from service.images.drawing import DrawnFormat, draw, drawing_work, encode
from service.web.paced import PacedResponse
from service.web.problems import problem_of

router = APIRouter(redirect_slashes=False)
Q = TypeVar("Q", bound=SelectionQuery)

_JSON_RANGES = frozenset({"application/json", "application/*", "*/*"})
_DRAWN: dict[str, DrawnFormat] = {"image/jpeg": "JPEG", "image/png": "PNG"}


class QueryRoute(APIRoute):
    """A route that FastAPI documents, and that calls its endpoint with the parsed query, of the type that it names.

    It leaves out what FastAPI wraps around an endpoint and detection does not use: dependencies, two exit stacks, and a
    second place that handles exceptions. `ExceptionMiddleware` handles them.
    """

    def __init__(self, path: str, endpoint: Callable[[Request, Q], Awaitable[Response]], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        kind: type[Q] = get_type_hints(endpoint)["query"]

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(Request(scope, receive, send), parse_query(scope["query_string"], kind))
            await response(scope, receive, send)

        self.app = answer


detect_router = APIRouter(redirect_slashes=False, route_class=QueryRoute, tags=["detection"])


@detect_router.post(
    "/detect",
    summary="Detect objects in one image",
    response_model=schemas.DetectionResult,
    responses=openapi.DETECT_RESPONSES,
    openapi_extra=openapi.DETECT_REQUEST,
)
async def detect(request: Request, query: TiledParameters) -> Response:
    """Send an image as the body, as the multipart field `file`, or in base64 in JSON.

    With `Accept: image/jpeg` or `image/png` the answer is the picture with the boxes drawn.
    """
    drawn_type = _drawn_type(request.headers.get("accept", ""))
    tiling = query.tiling
    async with admit(request, Priority.NORMAL if tiling is None else Priority.LOW) as job:
        wanted = Wanted(query, job.batcher.info)  # a wrong one is rejected before the body is read
        data = await job.read(read_image, body_bytes=job.settings.max_body_bytes)
        keep_picture = drawn_type is not None
        if tiling is None:
            finding = detect_image(job, data, keep_picture=keep_picture)
        else:
            finding = detect_tiles(job, data, tiling, keep_picture=keep_picture)
        del data  # once decoded, nothing needs it
        result = await finding
        headers = {"Server-Timing": result.server_timing()}
        with job.stage("encode"):
            if drawn_type is None:
                answer = partial(_json_answer, result, wanted, headers)
                # Thousands of detections, and suppression among them, would keep the event loop waiting.
                return answer() if result.parts == 1 else await job.in_thread(answer)
            memory = result.memory
            drawn_format = _DRAWN[drawn_type]
            cost = cost_of(drawing_work(drawn_format, result.size_hw, boxes=len(result.answer.detections.scores)))
            drawing = job.in_thread(partial(_drawn, result, wanted, drawn_format), cost=cost)
            del result  # the picture is freed as soon as it is drawn
            response = PacedResponse(await drawing, media_type=drawn_type, headers=headers)
            memory.shrink(len(response.body))
            job.keep_with(response, memory.split(memory.units))
            return response


@detect_router.post(
    "/detect/batch",
    summary="Detect objects in several images",
    response_model=schemas.BatchResult,
    responses=openapi.BATCH_RESPONSES,
    openapi_extra=openapi.BATCH_REQUEST,
)
async def detect_batch(request: Request, query: DetectParameters) -> Response:
    """Send several multipart fields named `file`. Each gets its result or its own problem, in order."""
    accept = request.headers.get("accept", "")
    if _drawn_type(accept) is not None and not _takes_json(accept):
        raise NotAcceptableError(
            "/detect/batch answers with application/json alone; /detect gives one picture with its boxes drawn"
        )
    async with admit(request, Priority.LOW) as job:
        settings = job.settings
        wanted = Wanted(query, job.batcher.info)
        files = await job.read(read_files, body_bytes=settings.max_batch_body_bytes, files=settings.max_batch_files)
        finding = detect_images(job, files)
        del files  # each is freed when it is decoded
        outcomes = await finding
        for outcome in outcomes:
            if isinstance(outcome, ServiceError):
                job.service.metrics.problems.labels(outcome.code).inc()
        with job.stage("encode"):
            results = [
                problem_of(request.scope, outcome) if isinstance(outcome, ServiceError) else _result(outcome, wanted)
                for outcome in outcomes
            ]
            return FastJSONResponse({"results": results})


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", tags=["health"], response_model=schemas.Health, responses=openapi.HEALTH_RESPONSES)
async def healthz(request: Request) -> Response:
    """How the service is: 200 when the model is loaded and its device answers, else 503."""
    service = service_of(request)
    condition = service.condition
    info = service.info
    body = schemas.Health(
        status=condition.status,
        detail=condition.detail,
        version=service.version,
        uptime_s=round(service.uptime_s, 3),
        model=None if info is None else schemas.Model(**schemas.model_json(info)),
        devices=[detector.device for detector in service.detectors],
        precision=next((detector.precision for detector in service.detectors), None),
        backend=next((detector.backend for detector in service.detectors), None),
        max_batch_size=service.max_batch_size,
        iou_threshold=None if info is None else info.iou_threshold,
        batch_caps=service.batch_caps,
        images_in_flight=service.images_in_flight,
        queue_capacity=service.settings.queue_capacity,
    )
    return JSONResponse(body.model_dump(), status_code=200 if condition.status == "ok" else 503)


@router.head("/livez", include_in_schema=False)
@router.get("/livez", tags=["health"], response_model=schemas.Probe)
async def livez() -> Response:
    """200 while the process answers at all: restart it when this fails."""
    return JSONResponse({"status": "ok"})


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", tags=["health"], response_model=schemas.Probe, responses=openapi.READINESS_RESPONSES)
async def readyz(request: Request) -> Response:
    """200 while requests are accepted, else 503: send them elsewhere when this fails."""
    status = service_of(request).condition.status
    return JSONResponse({"status": status}, status_code=200 if status == "ok" else 503)


@router.head("/labels", include_in_schema=False)
@router.get("/labels", tags=["model"], response_model=schemas.Labels, responses=openapi.problems(503))
async def labels(request: Request) -> Response:
    """The classes that detections can have."""
    info = service_of(request).info
    if info is None:
        raise UnavailableError(service_of(request).condition.detail)
    return JSONResponse(schemas.labels_json(info.categories))


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", tags=["health"], response_class=Response, responses=openapi.METRICS_RESPONSES)
async def metrics(request: Request) -> Response:
    """Metrics in Prometheus' text format, or in OpenMetrics where `Accept` prefers it."""
    service = service_of(request)
    await service.readings.refresh([detector.device for detector in service.detectors])
    async with service.scrape:
        body, media_type = service.metrics.exposition(request.headers.get("accept", ""))
        await asyncio.sleep(0)  # one in a round of the event loop: many at once would keep it from all else
    return Response(body, headers={"Content-Type": media_type, "Vary": "Accept"})


class Wanted:
    """What a query wants of answers, found once for a model.

    Args:
        query: of the request.
        info: the model that is served.

    Raises:
        BadParameterError: a parameter does not fit the model.
    """

    def __init__(self, query: DetectQuery, info: ModelInfo) -> None:
        self.query = query
        self._info, self._selection = info, query.selection(info)

    def chosen(self, answer: Answer) -> Detections:
        """The detections that are wanted, by the classes of the model that answered: it may have come meanwhile."""
        selection = self._selection if answer.info is self._info else self.query.selection(answer.info)
        return selection.apply(answer.detections)


def _result(result: ImageResult, wanted: Wanted) -> dict[str, Any]:
    answer = result.answer
    return schemas.result_json(wanted.chosen(answer), wanted.query, result.size_hw, answer.info)


def _json_answer(result: ImageResult, wanted: Wanted, headers: dict[str, str]) -> Response:
    return FastJSONResponse(_result(result, wanted), headers=headers)


def _drawn(result: ImageResult, wanted: Wanted, image_format: DrawnFormat) -> bytes:
    assert result.picture is not None, "it is kept for this"
    chosen = wanted.chosen(result.answer)
    captions = schemas.captions(chosen, result.answer.info.categories)
    image = draw(result.picture, chosen.boxes.tolist(), chosen.labels.tolist(), captions)
    return encode(image, image_format)


@lru_cache(maxsize=64)
def _drawn_type(accept: str) -> str | None:
    """The media type of the drawn picture, if the caller prefers one to JSON."""
    for media_type in _accepted(accept):
        if media_type in _DRAWN:
            return media_type
        if media_type == "image/*":
            return "image/jpeg"
        if media_type in _JSON_RANGES:
            return None
    return None


def _takes_json(accept: str) -> bool:
    return not _JSON_RANGES.isdisjoint(_accepted(accept))


def _accepted(header: str) -> list[str]:
    """The media types of an Accept header, most wanted first (RFC 9110, section 12.5.1)."""
    wanted: list[tuple[float, str]] = []
    for entry in header.split(","):
        media_type, *parameters = (part.strip().lower() for part in entry.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        if quality > 0:
            wanted.append((-quality, media_type))
    return [media_type for _, media_type in sorted(wanted, key=lambda pair: pair[0])]
