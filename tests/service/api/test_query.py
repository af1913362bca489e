"""The query, from its bytes to the selection that it asks for."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest

from model.weights.categories import Categories
from service.api.query import DetectQuery, SelectionQuery, TiledQuery, parse_query
from service.api.selection import Selection
from service.devices.detector import ModelInfo
from service.errors import BadParameterError

INFO = ModelInfo("detector", "fake", Categories.of_objects(["person", "car", "Car", "traffic light, red"]), 0.4)


@pytest.mark.parametrize(
    ("query", "parsed"),
    [
        (b"", DetectQuery()),
        (b"&&", DetectQuery()),
        (b"score_threshold=0.25&labels=dog%2Ccat", DetectQuery(score_threshold=0.25, labels="dog,cat")),
        (b"labels=", DetectQuery(labels="")),
        (b"box_format=xywh&normalized=true", DetectQuery(box_format="xywh", normalized=True)),
        (b"labels=a&labels=b", DetectQuery(labels=["a", "b"])),
        (b"score_threshold=0.25", DetectQuery(score_threshold="0.25")),
        (b"score_threshold=0.5,dog%3A0.8", DetectQuery(score_threshold="0.5,dog:0.8")),
        (b"iou_threshold=0.3&class_agnostic=true", DetectQuery(iou_threshold=0.3, class_agnostic=True)),
        (b"labels=" + b"person," * 99 + b"dog", DetectQuery(labels="person," * 99 + "dog")),
    ],
)
def test_a_query_is_parsed(query: bytes, parsed: DetectQuery) -> None:
    assert parse_query(query, DetectQuery) == parse_query(query, DetectQuery) == parsed


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (b"max_detections=1&max_detections=2", "max_detections is given 2 times"),
        (b"score_threshold=", "score_threshold: "),
        (b"score_threshold=2", "score_threshold: a threshold is a number from 0 to 1, not '2'"),
        (b"score_threshold=0.5,dog", "score_threshold: should be a number from 0 to 1, or"),
        (b"iou_threshold=1.5", "iou_threshold: Input should be less than or equal to 1"),
        (b"iou_threshold=nan", "iou_threshold: "),
        (b"class_agnostic=perhaps", "class_agnostic: Input should be a valid boolean"),
        (b"surplus=1", "surplus: there is no such parameter; there are score_threshold, "),
        (b"=1", ": there is no such parameter"),
        (b"labels=" + b"a" * 16_385, "labels: should have at most 16384 characters"),
    ],
)
def test_a_wrong_query_is_named(query: bytes, words: str) -> None:
    for _ in range(2):
        with pytest.raises(BadParameterError) as caught:
            parse_query(query, DetectQuery)
        assert words in caught.value.detail


@pytest.mark.parametrize(
    ("query", "selection"),
    [
        (DetectQuery(), Selection()),
        (DetectQuery(score_threshold="0.5,person:0.8"), Selection(score_threshold=0.5, class_thresholds={1: 0.8})),
        (DetectQuery(score_threshold="#2:1,traffic light, red:0"), Selection(class_thresholds={2: 1.0, 4: 0.0})),
        (DetectQuery(iou_threshold=0.4), Selection(iou_threshold=0.4)),
        (DetectQuery(class_agnostic=True), Selection(iou_threshold=0.4, class_agnostic=True)),
        (DetectQuery(labels="car,1", max_detections=7), Selection(labels=frozenset({1, 2}), max_detections=7)),
    ],
)
def test_a_query_becomes_a_selection(query: DetectQuery, selection: Selection) -> None:
    assert query.selection(INFO) == selection


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (DetectQuery(score_threshold="unicorn:0.5"), "score_threshold: 'unicorn' is neither the name nor the id"),
        (DetectQuery(score_threshold="CAR:0.5"), "score_threshold: 'CAR' may mean car or Car"),
        (DetectQuery(score_threshold="person,car:0.5"), "'person,car' are several classes"),
        (DetectQuery(score_threshold="person:0.5,#1:0.6"), "'person' has two thresholds"),
        (DetectQuery(iou_threshold=0.41), "iou_threshold: at most 0.4, above which the model itself drops"),
        (DetectQuery(labels="unicorn"), "labels: 'unicorn' is neither the name nor the id"),
    ],
)
def test_what_does_not_fit_the_model_is_named(query: DetectQuery, words: str) -> None:
    with pytest.raises(BadParameterError) as caught:
        query.selection(INFO)
    assert words in caught.value.detail


@pytest.mark.parametrize("kind", [SelectionQuery, DetectQuery, TiledQuery])
def test_every_default_may_be_sent(kind: type[SelectionQuery]) -> None:
    """Clients that are generated from the document send them all."""
    defaults = {name: field.default for name, field in kind.model_fields.items() if field.default is not None}
    assert parse_query(urlencode(defaults).encode(), kind).model_dump() == kind().model_dump()
