"""What callers ask for in the query of `/detect`, and in its counterparts elsewhere."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Any, Literal, Self, TypeVar

from fastapi import Query
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from starlette.datastructures import QueryParams

from service.api.selection import Selection
from service.api.thresholds import ScoreThresholds, parse_thresholds
from service.api.tiles import Tiling
from service.devices.detector import ModelInfo
from service.errors import BadParameterError

BoxFormat = Literal["xyxy", "xywh", "cxcywh"]
MOST_DETECTIONS = 100  # the model's own bound
_MOST_IN_TILES = 10_000
_LONGEST_LABELS = 16_384
_LONGEST_CACHED_QUERY = 256  # bytes


def _checked_thresholds(value: Any) -> Any:
    """Accept a number, also one that is written as a text."""
    if not isinstance(value, str):
        return value
    thresholds = parse_thresholds(value)
    return value if thresholds.of_classes else thresholds.others


def _texts(value: Any) -> Any:
    """One text stands for a list of it; a number in a list, which JSON has, is an id."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        if len(value) > _LONGEST_LABELS:
            raise ValueError(f"should be at most {_LONGEST_LABELS} names and ids")
        if not all(isinstance(one, str) or type(one) is int for one in value):
            raise ValueError("should be names and ids of classes")  # once, and not for each
        return [f"#{one}" if type(one) is int else one for one in value]
    return value


def _bounded(texts: list[str] | None) -> list[str] | None:
    # Fits the head of a request; the Open Inference Protocol has it in a body of megabytes.
    if texts is not None and sum(map(len, texts)) > _LONGEST_LABELS:
        raise ValueError(f"should have at most {_LONGEST_LABELS} characters")
    return texts


Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class SelectionQuery(BaseModel):
    """The parameters that choose detections."""

    model_config = ConfigDict(extra="forbid")

    score_threshold: Annotated[Score | str, BeforeValidator(_checked_thresholds)] = Field(
        0.0,
        description="Drop detections that score lower. `0.5,person:0.8` has a threshold of its own for a class, by its "
        "name or id. The model itself drops those of 0.05 and less.",
        examples=[0.5],
    )
    max_detections: int = Field(MOST_DETECTIONS, ge=1, le=MOST_DETECTIONS, description="Keep this many of the best.")
    labels: Annotated[list[str] | None, BeforeValidator(_texts), AfterValidator(_bounded)] = Field(
        None,
        description="Keep only these classes: names or ids, separated by commas or in parameters of their own; empty "
        "keeps none. A name as it is written wins over an id; `#3`, in an address `%233`, is always the id 3. See "
        "/labels.",
        examples=[["1,2"]],
    )
    iou_threshold: Score | None = Field(
        None,
        description="Of two detections of a class that overlap more than this (intersection over union), drop the "
        "lower. At most the model's own, usually 0.5.",
    )
    class_agnostic: bool = Field(False, description="Of two that overlap so, drop the lower whatever their classes.")

    def selection(self, info: ModelInfo) -> Selection:
        """The detections of a model that are wanted.

        Raises:
            BadParameterError: a parameter does not fit the model.
        """
        given = self.score_threshold
        thresholds = parse_thresholds(given) if isinstance(given, str) else ScoreThresholds(given, {})
        labels = None
        if self.labels is not None:
            labels = _labels("labels", [text for text in self.labels if text], info)
        if self.iou_threshold is not None and self.iou_threshold > info.iou_threshold:
            raise BadParameterError(
                f"iou_threshold: at most {info.iou_threshold:g}, above which the model itself drops the lower of two"
            )
        iou_threshold = self.iou_threshold
        if self.class_agnostic and iou_threshold is None:
            iou_threshold = info.iou_threshold
        return Selection(
            score_threshold=thresholds.others,
            class_thresholds=_by_label(thresholds.of_classes, info),
            labels=labels,
            iou_threshold=iou_threshold,
            class_agnostic=self.class_agnostic,
            max_detections=self.max_detections,
        )


class DetectQuery(SelectionQuery):
    """The query parameters of `/detect/batch`."""

    box_format: BoxFormat = Field("xyxy", description="Corners; or corner, width, height; or centre, width, height.")
    normalized: bool = Field(False, description="Boxes as fractions of the image's width and height, not in pixels.")


class TiledQuery(DetectQuery):
    """The query parameters of `/detect`."""

    max_detections: int = Field(
        MOST_DETECTIONS,
        ge=1,
        le=_MOST_IN_TILES,
        description=f"Keep this many of the best: at most {MOST_DETECTIONS}, or with `tile` {_MOST_IN_TILES:,}, the "
        "default then.",
    )
    tile: int | None = Field(
        None,
        ge=64,
        le=8192,
        description="Look at a large picture in tiles of this many pixels a side. Each counts as an image in budgets "
        "and deadline, and by default in priority `low`.",
        examples=[None],
    )
    tile_overlap: float = Field(
        0.2, ge=0, le=0.8, allow_inf_nan=False, description="Share of its side that a tile has in common with the next."
    )
    tile_whole: bool = Field(True, description="Look at the picture as a whole, too, for what is larger than a tile.")

    @model_validator(mode="after")
    def _check_tile(self) -> Self:
        if self.tile is None:
            if self.max_detections > MOST_DETECTIONS:
                raise ValueError(f"max_detections: at most {MOST_DETECTIONS} without tile")
            # Generated clients send every default that the document names.
            fields = type(self).model_fields
            if any(getattr(self, name) != fields[name].default for name in ("tile_overlap", "tile_whole")):
                raise ValueError("tile_overlap and tile_whole say how to divide a picture, and tile is missing")
        return self

    @property
    def tiling(self) -> Tiling | None:
        """How to divide the picture; None if it is looked at as a whole alone."""
        return None if self.tile is None else Tiling(self.tile, self.tile_overlap, self.tile_whole)

    def selection(self, info: ModelInfo) -> Selection:
        selection = super().selection(info)
        if self.tile is not None and "max_detections" not in self.model_fields_set:
            return replace(selection, max_detections=_MOST_IN_TILES)
        return selection


SelectionParameters = Annotated[SelectionQuery, Query()]
DetectParameters = Annotated[DetectQuery, Query()]
TiledParameters = Annotated[TiledQuery, Query()]
Q = TypeVar("Q", bound=SelectionQuery)


def parse_query(query_string: bytes, kind: type[Q]) -> Q:
    """Parse a query of some kind.

    Raises:
        BadParameterError: a parameter is unknown, wrong, or given twice; only `labels` may be.
    """
    parse = _parse if len(query_string) <= _LONGEST_CACHED_QUERY else _parse.__wrapped__
    query = parse(query_string, kind)
    assert isinstance(query, kind), "the cache gives each kind its own"
    return query


@lru_cache(maxsize=256)
def _parse(query_string: bytes, kind: type[SelectionQuery]) -> SelectionQuery:
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
        return kind.model_validate(given)
    except ValidationError as error:
        raise BadParameterError(in_words(error, kind)) from error


def in_words(error: ValidationError, kind: type[SelectionQuery]) -> str:
    """What is wrong with the parameters, each by its name."""
    return "; ".join(_one_in_words(one, kind) for one in error.errors())


def _one_in_words(error: ErrorDetails, kind: type[SelectionQuery]) -> str:
    if not error["loc"]:  # of several parameters together
        return error["msg"].removeprefix("Value error, ")
    name = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return f"{name}: there is no such parameter; there are {', '.join(kind.model_fields)}"
    return f"{name}: {error['msg'].removeprefix('Value error, ')}"


def _by_label(of_classes: dict[str, float], info: ModelInfo) -> dict[int, float]:
    """Thresholds by label.

    Raises:
        BadParameterError: one is of no class, or of several, or two are of the same.
    """
    by_label: dict[int, float] = {}
    for name, threshold in of_classes.items():
        labels = _labels("score_threshold", [name], info)
        if len(labels) > 1:
            raise BadParameterError(f"score_threshold: {name!r} are several classes; each takes a threshold of its own")
        for label in labels:
            if label in by_label:
                raise BadParameterError(f"score_threshold: {info.categories.name(label)!r} has two thresholds")
            by_label[label] = threshold
    return by_label


def _labels(parameter: str, texts: list[str], info: ModelInfo) -> frozenset[int]:
    """The labels that a parameter names.

    Raises:
        BadParameterError: it holds something that is no class.
    """
    try:
        return info.categories.labels(texts)
    except KeyError as error:
        word, *alike = error.args
        if alike:
            raise BadParameterError(
                f"{parameter}: {word!r} may mean {' or '.join(alike)}; write one of them as it is"
            ) from error
        known = list(info.categories.objects().values())
        shown = ", ".join(known) if len(known) <= 12 else f"{', '.join(known[:5])}, ... (all at /labels)"
        raise BadParameterError(
            f"{parameter}: {word!r} is neither the name nor the id of a class; there are {shown}"
        ) from error
