"""The JSON of the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from model.structures import score_text
from model.weights.categories import Categories
from service.api import examples
from service.api.query import DetectQuery
from service.devices.detector import Detections, ModelInfo

# A ten-thousandth of a pixel, and of a normalised coordinate on an 8,000 px side a thousandth of a pixel.
_PIXEL_DECIMALS, _NORMALIZED_DECIMALS, _SCORE_DECIMALS = 4, 7, 6


def _example(answer: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [answer]})


class ImageSize(BaseModel):
    width: int
    height: int


class Model(BaseModel):
    name: str
    weights: str
    version: str  # the first 12 hexadecimal digits of the SHA-256 of the file of weights


class DetectionResult(BaseModel):
    """What was found in one image, best first."""

    model_config = _example(examples.DETECTION)

    boxes: list[tuple[float, float, float, float]]
    labels: list[int]
    scores: list[float]
    label_names: list[str]
    image: ImageSize
    model: Model


class Reloaded(BaseModel):
    """What is served after a reload, and how long that took."""

    model: Model
    seconds: float


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
    backend: str | None = None  # what computes the network: torch or openvino
    max_batch_size: int | None = None
    iou_threshold: float | None = None  # the model's own, which callers may lower
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
    labels = found.labels.tolist()
    return {
        "boxes": boxes.tolist(),
        "labels": labels,
        "scores": score_json(found.scores),
        "label_names": label_names(labels, info.categories),
        "image": {"width": size_hw[1], "height": size_hw[0]},
        "model": model_json(info),
    }


def score_json(scores: npt.NDArray[np.float32]) -> list[float]:
    rounded: list[float] = scores.astype(np.float64).round(_SCORE_DECIMALS).tolist()
    return rounded


def captions(found: Detections, categories: Categories) -> list[str]:
    """The text at each box: the class and the score, as the page writes them."""
    names = label_names(found.labels.tolist(), categories)
    return [f"{name} {score_text(score)}" for name, score in zip(names, found.scores.tolist(), strict=True)]


def label_names(labels: Sequence[int], categories: Categories) -> list[str]:
    return [categories.name(label) for label in labels]


def model_json(info: ModelInfo) -> dict[str, str]:
    return {"name": info.name, "weights": info.weights, "version": info.version}


def labels_json(categories: Categories) -> dict[str, Any]:
    return {"labels": [{"id": label, "name": name} for label, name in categories.objects().items()]}


def _formatted(boxes: npt.NDArray[np.float64], query: DetectQuery, size_hw: tuple[int, int]) -> npt.NDArray[np.float64]:
    if query.box_format != "xyxy":
        corner, opposite = boxes[:, :2], boxes[:, 2:]
        start = corner if query.box_format == "xywh" else (corner + opposite) / 2
        boxes = np.hstack((start, opposite - corner))
    if query.normalized:
        height, width = size_hw
        return (boxes / (width, height, width, height)).round(_NORMALIZED_DECIMALS)
    return boxes.round(_PIXEL_DECIMALS)
