from __future__ import annotations

import json

import pytest

from service.api.schemas import DetectQuery, FastJSONResponse, parse_query
from service.errors import BadParameterError


def test_json_keeps_its_digits() -> None:
    values = [0.1, 1 / 3, 123.4567, 0.998162, 1e-7, 639.99995, 0.0, 5e-5, 1e22]
    assert json.loads(bytes(FastJSONResponse(values).body)) == values
    assert FastJSONResponse([0.05, 123.4567, 7.0]).body == b"[0.05,123.4567,7.0]"


@pytest.mark.parametrize(
    ("query", "parsed"),
    [
        (b"", DetectQuery()),
        (b"&&", DetectQuery()),
        (b"score_threshold=0.25&labels=dog%2Ccat", DetectQuery(score_threshold=0.25, labels="dog,cat")),
        (b"labels=", DetectQuery(labels="")),
        (b"box_format=xywh&normalized=true", DetectQuery(box_format="xywh", normalized=True)),
        (b"labels=a&labels=b", DetectQuery(labels=["a", "b"])),
        (b"labels=" + b"person," * 99 + b"dog", DetectQuery(labels="person," * 99 + "dog")),
    ],
)
def test_a_query_is_parsed(query: bytes, parsed: DetectQuery) -> None:
    assert parse_query(query) == parse_query(query) == parsed


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (b"max_detections=1&max_detections=2", "max_detections is given 2 times"),
        (b"score_threshold=", "score_threshold: "),
        (b"score_threshold=2", "score_threshold: Input should be less than or equal to 1"),
        (b"surplus=1", "surplus: there is no such parameter; there are score_threshold, "),
        (b"=1", ": there is no such parameter"),
        (b"labels=" + b"a" * 16_385, "labels: Value error, should have at most 16384 characters"),
    ],
)
def test_a_wrong_query_is_named(query: bytes, words: str) -> None:
    for _ in range(2):
        with pytest.raises(BadParameterError) as caught:
            parse_query(query)
        assert words in caught.value.detail
