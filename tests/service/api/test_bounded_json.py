from __future__ import annotations

import json
import tracemalloc

import pytest

from service.api.bounded_json import decode_base64, read_object, unpacking_bytes
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


def test_base64_may_have_white_space_and_nothing_else() -> None:
    assert decode_base64(" QU\r\nJD\t", name="it") == b"ABC"
    for wrong in ("QUJ", "QU\N{NO-BREAK SPACE}JD", "QU-JD=", "="):
        with pytest.raises(BadRequestError, match="it is not base64"):
            decode_base64(wrong, name="it")


@pytest.mark.parametrize("text", ["AA==", "AA " * 1_000_000, "A" * 1_000_000, "A " * 500_000 + "\N{GRINNING FACE}"])
@pytest.mark.parametrize("as_it_is", [True, False])
def test_unpacking_takes_no_more_memory_than_it_says(text: str, as_it_is: bool) -> None:
    body = json.dumps({"image": text}, ensure_ascii=not as_it_is).encode()
    tracemalloc.start()
    try:
        with pytest.raises(BadRequestError):
            decode_base64(read(body)["image"] + "!", name="it")  # type: ignore[operator]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= unpacking_bytes(body, most_parts=10) + 100_000
