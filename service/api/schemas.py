"""What goes out as JSON, and the query that shapes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
from fastapi import Query
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from starlette.datastructures import QueryParams

from model.weights.categories import Categories
from service.api import examples
from service.devices.detector import Detections, ModelInfo
from service.errors import BadParameterError

BoxFormat = Literal["xyxy", "xywh", "cxcywh"]
_LONGEST_LABELS = 16_384

_LONGEST_CACHED_QUERY = 256  # bytes
# A ten-thousandth of a pixel, and of a normalised coordinate on an 8,000 px side a thousandth of a pixel.
_PIXEL_DECIMALS, _NORMALIZED_DECIMALS, _SCORE_DECIMALS = 4, 7, 6


def _texts(value: Any) -> Any:
    """One text stands for a list of it; a number in a list, which JSON has, is an id."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [f"#{one}" if type(one) is int else one for one in value]
    return value


def _bounded(texts: list[str] | None) -> list[str] | None:
    # Fits the head of a request; the Open Inference Protocol has it in a body of megabytes.
    if texts is not None and sum(map(len, texts)) > _LONGEST_LABELS:
        raise ValueError(f"should have at most {_LONGEST_LABELS} characters")
    return texts


class DetectQuery(BaseModel):
    """The query parameters of `/detect` and `/detect/batch`."""

    model_config = ConfigDict(extra="forbid")

    score_threshold: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Drop detections that score lower. The model itself drops those of 0.05 and less.",
    )
    max_detections: int = Field(100, ge=1, le=100, description="Keep so many of the best.")
    labels: Annotated[list[str] | None, BeforeValidator(_texts), AfterValidator(_bounded)] = Field(
        None,
        description="Keep only these classes: names or ids, separated by commas or in parameters of their own; empty "
        "keeps none. A name as it is written wins over an id; `#3` is always the id 3. See /labels.",
        examples=[["1,2"]],
    )
    box_format: BoxFormat = Field("xyxy", description="Corners; or corner, width, height; or centre, width, height.")
    normalized: bool = Field(False, description="Boxes as fractions of the image's width and height, not in pixels.")

    def selection(self, categories: Categories) -> Selection:
        """The part of the query that chooses detections.

        Raises:
            BadParameterError: `labels` holds something that is no class.
        """
        labels = None
        if self.labels is not None:
            try:
                labels = categories.labels(text for text in self.labels if text)
            except KeyError as error:
                word, *alike = error.args
                if alike:
                    raise BadParameterError(
                        f"labels: {word!r} may mean {' or '.join(alike)}; write one of them as it is"
                    ) from error
                known = list(categories.objects().values())
                shown = ", ".join(known) if len(known) <= 12 else f"{', '.join(known[:5])}, ... (all at /labels)"
                raise BadParameterError(
                    f"labels: {word!r} is neither the name nor the id of a class; there are {shown}"
                ) from error
        return Selection(self.score_threshold, self.max_detections, labels)


Parameters = Annotated[DetectQuery, Query()]


def parse_query(query_string: bytes) -> DetectQuery:
    """Parse the query of `/detect` and `/detect/batch`.

    Raises:
        BadParameterError: a parameter is unknown, wrong, or given twice; only `labels` may be.
    """
    return _parse(query_string) if len(query_string) <= _LONGEST_CACHED_QUERY else _parse.__wrapped__(query_string)


@lru_cache(maxsize=256)
def _parse(query_string: bytes) -> DetectQuery:
    query = QueryParams(query_string)
    given: dict[str, Any] = {}
    for name, value in query.multi_items():
        if name == "labels":
            given.setdefault(name, []).append(value)
        elif name in given:
            raise BadParameterError(f"{name} is given {len(query.getlist(name))} times")
        else:
            given[name] = value
    try:
        return DetectQuery.model_validate(given)
    except ValidationError as error:
        raise BadParameterError("; ".join(map(_in_words, error.errors()))) from error


def _in_words(error: ErrorDetails) -> str:
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{name}: there is no such parameter; there are {', '.join(DetectQuery.model_fields)}"
    return f"{name}: {error['msg']}"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which detections a caller wants. Choosing among a batch's answers costs nothing, so it never splits a batch."""

    score_threshold: float
    max_detections: int
    labels: frozenset[int] | None

    def apply(self, found: Detections) -> Detections:
        if self.score_threshold <= 0 and self.labels is None and self.max_detections >= len(found.scores):
            return found
        wanted = found.scores >= self.score_threshold
        if self.labels is not None:
            wanted &= np.isin(found.labels, list(self.labels))
        kept = np.flatnonzero(wanted)[: self.max_detections]
        return Detections(boxes=found.boxes[kept], labels=found.labels[kept], scores=found.scores[kept])


def _example(answer: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [answer]})


class ImageSize(BaseModel):
    width: int
    height: int


class Model(BaseModel):
    name: str
    weights: str


class DetectionResult(BaseModel):
    """What was found in one image, best first."""

    model_config = _example(examples.DETECTION)

    boxes: list[tuple[float, float, float, float]]
    labels: list[int]
    scores: list[float]
    label_names: list[str]
    image: ImageSize
    model: Model


class Problem(BaseModel):
    """RFC 9457 problem document."""

    model_config = _example(examples.PROBLEM)

    type: str
    title: str
    status: int
    detail: str
    request_id: str


class BatchResult(BaseModel):
    """One entry per file, in order: what was found, or the problem with it."""

    model_config = _example(examples.BATCH)

    results: list[DetectionResult | Problem]


class Label(BaseModel):
    id: int
    name: str


class Labels(BaseModel):
    model_config = _example(examples.LABELS)

    labels: list[Label]


class Probe(BaseModel):
    """The short answer that an orchestrator needs."""

    status: Literal["ok", "loading", "draining", "failing"]


class Health(BaseModel):
    """How the service is."""

    model_config = _example(examples.HEALTH)

    status: Literal["ok", "loading", "draining", "failing"]
    detail: str
    version: str
    uptime_s: float
    model: Model | None = None
    devices: list[str] = []
    precision: str | None = None
    max_batch_size: int | None = None
    batch_caps: dict[str, int] = {}  # of each device that ran out of memory: how many images it is trusted with now
    images_in_flight: int = 0
    queue_capacity: int | None = None


class FastJSONResponse(JSONResponse):
    """The same numbers as the standard library's JSON, in their shortest digits, ten times as fast."""

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        own = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()]
        framing = [(b"content-length", b"%d" % len(self.body)), (b"content-type", b"application/json")]
        self.raw_headers = own + framing


def result_json(found: Detections, query: DetectQuery, size_hw: tuple[int, int], info: ModelInfo) -> dict[str, Any]:
    """The answer to one image, as `DetectionResult` describes it."""
    boxes = _formatted(found.boxes.astype(np.float64), query, size_hw)
    return {
        "boxes": boxes.tolist(),
        "labels": found.labels.tolist(),
        "scores": found.scores.astype(np.float64).round(_SCORE_DECIMALS).tolist(),
        "label_names": label_names(found.labels.tolist(), info.categories),
        "image": {"width": size_hw[1], "height": size_hw[0]},
        "model": model_json(info),
    }


def captions(found: Detections, categories: Categories) -> list[str]:
    """The text at each box: the class and the score, as the page writes them."""
    names = label_names(found.labels.tolist(), categories)
    return [f"{name} {score_text(score)}" for name, score in zip(names, found.scores.tolist(), strict=True)]


def score_text(score: float) -> str:
    """A score with two digits, rounded down.

    0.9995 is not certain, and a score below a threshold never reads as equal to it.
    """
    hundredths = round(score * 10**_SCORE_DECIMALS) // 10 ** (_SCORE_DECIMALS - 2)
    return f"{hundredths / 100:.2f}"


def label_names(labels: Sequence[int], categories: Categories) -> list[str]:
    return [categories.name(label) for label in labels]


def model_json(info: ModelInfo) -> dict[str, str]:
    return {"name": info.name, "weights": info.weights}


def labels_json(categories: Categories) -> dict[str, Any]:
    return {"labels": [{"id": label, "name": name} for label, name in categories.objects().items()]}


def _formatted(boxes: npt.NDArray[np.float64], query: DetectQuery, size_hw: tuple[int, int]) -> npt.NDArray[np.float64]:
    height, width = size_hw
    corner, opposite = boxes[:, :2], boxes[:, 2:]
    if query.box_format == "xywh":
        boxes = np.hstack((corner, opposite - corner))
    elif query.box_format == "cxcywh":
        boxes = np.hstack(((corner + opposite) / 2, opposite - corner))
    if query.normalized:
        return (boxes / (width, height, width, height)).round(_NORMALIZED_DECIMALS)
    return boxes.round(_PIXEL_DECIMALS)
