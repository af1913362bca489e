"""DeepStack's route. An image takes the same way as through `/detect`: budgets, deadline, batches."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.api.job import admit
from service.api.pipeline import detect_image
from service.api.query import SelectionParameters
from service.api.routes import QueryRoute
from service.api.schemas import FastJSONResponse, label_names, score_json
from service.api.selection import Selection
from service.api.thresholds import parse_threshold
from service.api.uploads import read_image_field
from service.batching.batch_queue import Priority
from service.deepstack import document
from service.deepstack.document import CONFIDENCE_FIELD, IMAGE_FIELD, KEY_FIELD, USUAL_CONFIDENCE
from service.devices.detector import Detections, ModelInfo
from service.errors import BadParameterError
from service.web.auth import check_key
from service.wire import DEEPSTACK_PATH

router = APIRouter(redirect_slashes=False, route_class=QueryRoute, tags=["deepstack"])


@router.post(
    DEEPSTACK_PATH,
    summary="Detect objects in one image, as DeepStack does",
    response_model=document.Predictions,
    responses=document.RESPONSES,
    openapi_extra=document.REQUEST,
)
async def detection(request: Request, query: SelectionParameters) -> Response:
    """Send an image as the multipart field `image`; `min_confidence` and `api_key` may stand in the form before it.

    The query chooses among the detections as it does in `/detect`.
    """
    started = time.perf_counter()

    async with admit(request, Priority.NORMAL) as job:

        def before_image(texts: dict[str, str]) -> None:
            check_key(request.scope, texts.get(KEY_FIELD, ""))
            query.selection(job.batcher.info)  # after the key: the answer to an unknown class names all

        reader = partial(
            read_image_field, field=IMAGE_FIELD, texts={CONFIDENCE_FIELD, KEY_FIELD}, before_image=before_image
        )
        data, texts = await job.read(reader, body_bytes=job.settings.max_body_bytes)
        least = _least(texts.get(CONFIDENCE_FIELD, ""))
        finding = detect_image(job, data)
        del data  # once decoded, nothing needs it
        result = await finding
        with job.stage("encode"):
            info = result.answer.info  # of the model that answered: it may have come meanwhile
            chosen = _above(query.selection(info), least).apply(result.answer.detections)
            predictions = _predictions(chosen, info)
            body = {"success": True, "predictions": predictions, "duration": round(time.perf_counter() - started, 6)}
            return FastJSONResponse(body, headers={"Server-Timing": result.server_timing()})


def _least(min_confidence: str) -> float:
    """The least score that the form asks for.

    Raises:
        BadParameterError: it is no score.
    """
    try:
        return parse_threshold(min_confidence) if min_confidence.strip() else USUAL_CONFIDENCE
    except ValueError as error:
        raise BadParameterError(f"{CONFIDENCE_FIELD}: {error}") from error


def _above(selection: Selection, least: float) -> Selection:
    """The selection with a least score for every class."""
    return replace(
        selection,
        score_threshold=max(selection.score_threshold, least),
        class_thresholds={label: max(own, least) for label, own in selection.class_thresholds.items()},
    )


def _predictions(found: Detections, info: ModelInfo) -> list[dict[str, Any]]:
    names = label_names(found.labels.tolist(), info.categories)
    return [
        {"label": name, "confidence": score, "x_min": x1, "y_min": y1, "x_max": x2, "y_max": y2}
        for name, score, (x1, y1, x2, y2) in zip(
            names, score_json(found.scores), found.boxes.round().astype(int).tolist(), strict=True
        )
    ]
