"""What HTTP asks for and gets. Each image: a look at the quota, bytes, a place in it, pixels, detections, JSON."""

from __future__ import annotations

import asyncio
from functools import lru_cache, partial
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from service import openapi, schemas
from service.admission import Places
from service.batch_queue import Priority
from service.batcher import Batcher
from service.deadline import in_time
from service.detector import ModelInfo
from service.drawing import DrawnFormat, draw, encode
from service.errors import BadParameterError, NotAcceptableError, ServiceError, UnavailableError, problem
from service.headers import first_headers
from service.lifecycle import Service
from service.pipeline import Found, find, find_all, while_connected
from service.schemas import DetectQuery, FastJSONResponse, Parameters, Selection
from service.settings import LONGEST_TIMEOUT_MS, TIMEOUT_HEADER, timeout_ms
from service.uploads import UploadLimits, read_files, read_image

router = APIRouter(redirect_slashes=False)

DETECT_PATH = "/detect"
_RAW_TIMEOUT_HEADER = TIMEOUT_HEADER.lower().encode()
_RAW_PRIORITY_HEADER = openapi.PRIORITY_HEADER.lower().encode()
_JSON_RANGES = frozenset({"application/json", "application/*", "*/*"})
_DRAWN: dict[str, DrawnFormat] = {"image/jpeg": "JPEG", "image/png": "PNG"}


@router.post(
    DETECT_PATH,
    tags=["detection"],
    summary="Detect objects in one image",
    response_model=schemas.DetectionResult,
    responses=openapi.DETECT_RESPONSES,
    openapi_extra=openapi.DETECT_REQUEST,
)
async def detect(request: Request, query: Parameters) -> Response:
    """Send an image as the body, as the multipart field `file`, or in base64 in JSON.

    With `Accept: image/jpeg` or `image/png` the answer is the picture with the boxes drawn.
    """
    _refuse_repetition(request)
    return await answer_detect(request, query)


async def answer_detect(request: Request, query: DetectQuery) -> Response:
    """`detect`, once its query is known to be right.

    Raises:
        ServiceError: what is wrong with the request, or with the service.
        ClientGoneError: nobody waits for the answer any more.
    """
    service = _service(request)
    batcher = service.batcher
    selection = query.selection(batcher.info.categories)
    settings = service.settings
    urgency = request_urgency(request, service, Priority.NORMAL)
    urgency.check(batcher)
    with batcher.admission.room_for_body() as take:
        limits = UploadLimits(
            body_bytes=settings.max_body_bytes,
            files=1,
            seconds=settings.body_timeout_s,
            deadline=urgency.deadline,
            take=take,
        )
        with service.stages.stage("read"):
            data = await read_image(request, limits, service.in_thread)
        with urgency.places(batcher):
            finding = find(service, batcher, data, deadline=urgency.deadline, priority=urgency.priority)
            del data  # once decoded, nothing needs it
            found = await while_connected(request, finding)
            headers = {"Server-Timing": found.server_timing()}
            media_type = _drawn_type(request)
            with service.stages.stage("encode"):
                if media_type is None:
                    return FastJSONResponse(_result(found, query, selection, batcher.info), headers=headers)
                work = partial(_drawn, found, selection, batcher.info, _DRAWN[media_type])
                drawn = await while_connected(request, in_time(urgency.deadline, service.in_thread(work)))
                return Response(drawn, media_type=media_type, headers=headers)


detect_route = router.routes[-1]


@router.post(
    "/detect/batch",
    tags=["detection"],
    summary="Detect objects in several images",
    response_model=schemas.BatchResult,
    responses=openapi.BATCH_RESPONSES,
    openapi_extra=openapi.BATCH_REQUEST,
)
async def detect_batch(request: Request, query: Parameters) -> Response:
    """Send several multipart fields named `file`. Each gets its result or its own problem, in order."""
    service = _service(request)
    batcher = service.batcher
    settings = service.settings
    _refuse_repetition(request)
    if _drawn_type(request) is not None and not _takes_json(request):
        raise NotAcceptableError(
            "/detect/batch answers with application/json alone; /detect gives one picture with its boxes drawn"
        )
    selection = query.selection(batcher.info.categories)
    urgency = request_urgency(request, service, Priority.LOW)
    urgency.check(batcher)
    with batcher.admission.room_for_body() as take:
        limits = UploadLimits(
            body_bytes=settings.max_batch_body_bytes,
            files=min(settings.max_batch_files, batcher.admission.capacity(urgency.priority)),
            seconds=settings.body_timeout_s,
            deadline=urgency.deadline,
            take=take,
        )
        with service.stages.stage("read"):
            files = await read_files(request, limits, service.in_thread)
        with urgency.places(batcher, len(files)):
            finding = find_all(service, batcher, files, deadline=urgency.deadline, priority=urgency.priority)
            outcomes = await while_connected(request, finding)
    for outcome in outcomes:
        if isinstance(outcome, ServiceError):
            service.metrics.problems.labels(outcome.code).inc()
    with service.stages.stage("encode"):
        results = [
            _problem(outcome, request)
            if isinstance(outcome, ServiceError)
            else _result(outcome, query, selection, batcher.info)
            for outcome in outcomes
        ]
        return FastJSONResponse({"results": results})


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", tags=["health"], response_model=schemas.Health, responses=openapi.HEALTH_RESPONSES)
async def healthz(request: Request) -> Response:
    """How the service is: 200 when the model is loaded and its device answers, else 503."""
    service = _service(request)
    condition = service.condition
    info = service.info
    body = schemas.Health(
        status=condition.status,
        detail=condition.detail,
        version=service.version,
        uptime_s=round(service.uptime_s, 3),
        model=None if info is None else schemas.Model(name=info.name, weights=info.weights),
        devices=[detector.device for detector in service.detectors],
        precision=next((detector.precision for detector in service.detectors), None),
        max_batch_size=service.max_batch_size,
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
    """200 while requests are taken, else 503: send them elsewhere when this fails."""
    status = _service(request).condition.status
    return JSONResponse({"status": status}, status_code=200 if status == "ok" else 503)


@router.head("/labels", include_in_schema=False)
@router.get("/labels", tags=["model"], response_model=schemas.Labels, responses=openapi.problems(503))
async def labels(request: Request) -> Response:
    """The classes that detections can have."""
    info = _service(request).info
    if info is None:
        raise UnavailableError(_service(request).condition.detail)
    return JSONResponse(schemas.labels_json(info.categories))


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", tags=["health"], response_class=Response, responses=openapi.METRICS_RESPONSES)
async def metrics(request: Request) -> Response:
    """Metrics in Prometheus' text format, or in OpenMetrics where `Accept` prefers it."""
    body, media_type = _service(request).metrics.exposition(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": media_type, "Vary": "Accept"})


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _refuse_repetition(request: Request) -> None:
    """A parameter given twice would be half ignored; only `labels` may come in several."""
    names = [name for name, _ in request.query_params.multi_items() if name != "labels"]
    for name in names:
        if names.count(name) > 1:
            raise BadParameterError(f"{name} is given {names.count(name)} times")


class Urgency(NamedTuple):
    """When the answer must be there, on the event loop's clock, and before whose."""

    deadline: float
    priority: Priority

    def check(self, batcher: Batcher) -> None:
        """See `Admission.check`."""
        batcher.admission.check(priority=self.priority, seconds_left=self._seconds_left)

    def places(self, batcher: Batcher, count: int = 1) -> Places:
        """See `Admission.places`."""
        return batcher.admission.places(count, priority=self.priority, seconds_left=self._seconds_left)

    @property
    def _seconds_left(self) -> float:
        return self.deadline - asyncio.get_running_loop().time()


def request_urgency(request: Request, service: Service, usual: Priority) -> Urgency:
    """By the request's headers, or else by the settings and the route."""
    head = first_headers(request.scope)
    text = head.get(_RAW_TIMEOUT_HEADER)
    milliseconds = service.settings.request_timeout_ms if text is None else timeout_ms(text.decode("latin-1"))
    if milliseconds is None:
        raise BadParameterError(f"{TIMEOUT_HEADER} must be a whole number from 1 to {LONGEST_TIMEOUT_MS}")
    priority = usual
    if _RAW_PRIORITY_HEADER in head:
        name = ", ".join(request.headers.getlist(openapi.PRIORITY_HEADER)).strip().lower()
        if name not in openapi.PRIORITIES:
            raise BadParameterError(f"{openapi.PRIORITY_HEADER} must be one of {', '.join(openapi.PRIORITIES)}")
        priority = openapi.PRIORITIES[name]
    return Urgency(asyncio.get_running_loop().time() + milliseconds / 1000, priority)


def _result(found: Found, query: DetectQuery, selection: Selection, info: ModelInfo) -> dict[str, Any]:
    chosen = selection.apply(found.answer.detections)
    return schemas.result_json(chosen, query, found.picture.size_hw, info)


def _problem(error: ServiceError, request: Request) -> dict[str, Any]:
    return problem(status=error.status, code=error.code, detail=error.detail, request_id=request.state.request_id)


def _drawn(found: Found, selection: Selection, info: ModelInfo, image_format: DrawnFormat) -> bytes:
    chosen = selection.apply(found.answer.detections)
    captions = schemas.captions(chosen, info.categories)
    image = draw(found.picture, chosen.boxes.tolist(), chosen.labels.tolist(), captions)
    return encode(image, image_format)


def _drawn_type(request: Request) -> str | None:
    """The media type of the picture that the caller would rather have than JSON, if any."""
    for media_type in _accepted(first_headers(request.scope).get(b"accept", b"").decode("latin-1")):
        if media_type in _DRAWN:
            return media_type
        if media_type == "image/*":
            return "image/jpeg"
        if media_type in _JSON_RANGES:
            return None
    return None


def _takes_json(request: Request) -> bool:
    return not _JSON_RANGES.isdisjoint(_accepted(first_headers(request.scope).get(b"accept", b"").decode("latin-1")))


@lru_cache(maxsize=64)
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
