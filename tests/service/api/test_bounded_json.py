from __future__ import annotations

import json

import pytest

from service.api.bounded_json import read_object
from service.errors import BadRequestError

EXPECTED = "the body must be a JSON object with the member image"


def read(text: bytes, most_parts: int = 10) -> dict[str, object]:
    return read_object(text, most_parts=most_parts, expected=EXPECTED)


def test_an_object_within_the_bound_is_read() -> None:
    document = {"image": "abc", "more": [1, 2, {"a": None}]}
    assert read(json.dumps(document).encode()) == document


@pytest.mark.parametrize("text", [b"[]", b"null", b'"a"', b"1"])
def test_another_value_is_told_what_is_expected(text: bytes) -> None:
    with pytest.raises(BadRequestError) as caught:
        read(text)
    assert caught.value.detail == EXPECTED


@pytest.mark.parametrize("text", [b"", b"{", b'{"a": }', b"\xff\xfe", b"{" * 9])
def test_what_is_no_json_is_told_so(text: bytes) -> None:
    with pytest.raises(BadRequestError, match="the body is not JSON"):
        read(text)


@pytest.mark.parametrize("text", [b"[" * 1000, b'{"a":' * 1000, b'{"a": [' + b"1," * 1000])
def test_many_parts_are_rejected_before_they_are_parsed(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(_: object) -> None:
        raise AssertionError("it was parsed")

    monkeypatch.setattr(json, "loads", parse)
    with pytest.raises(BadRequestError) as caught:
        read(text)
    assert caught.value.detail == EXPECTED


def test_brackets_in_strings_count_as_parts_too() -> None:
    assert read(b'{"a": "[[["}', most_parts=4) == {"a": "[[["}
    with pytest.raises(BadRequestError):
        read(b'{"a": "[[["}', most_parts=3)
