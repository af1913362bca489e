from __future__ import annotations

import re

import pytest

from service import errors
from service.errors import (
    OTHER_CODES,
    BodyTimeoutError,
    QueueFullError,
    ServiceError,
    UnauthorizedError,
    UnavailableError,
    problem,
)

CLASSES = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, ServiceError)]


def made(kind: type[ServiceError]) -> ServiceError:
    return UnauthorizedError("why", challenge="Bearer") if kind is UnauthorizedError else kind("why")


def test_the_tree_at_the_head_has_every_class_with_its_status() -> None:
    assert errors.__doc__ is not None
    drawn = dict(re.findall(r"^\+- (\w+) +(\d{3})  ", errors.__doc__, re.MULTILINE))
    assert drawn == {one.__name__: str(int(one.status)) for one in CLASSES if one is not ServiceError}
    assert list(drawn.values()) == sorted(drawn.values())


def test_each_code_has_one_meaning() -> None:
    codes = [one.code for one in CLASSES] + [code for code, _ in OTHER_CODES.values()]
    assert {code for code in codes if codes.count(code) > 1} == {"internal"}  # of the base class, and of any other
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("kind", CLASSES)
def test_headers_say_when_to_come_back_and_whether_the_connection_ends(kind: type[ServiceError]) -> None:
    headers = made(kind).headers
    assert ("Connection" in headers) == (kind is BodyTimeoutError)
    assert headers.get("Retry-After") == ("1" if kind is UnavailableError else None)
    assert ("WWW-Authenticate" in headers) == (kind is UnauthorizedError)


def test_a_pause_is_told_in_seconds() -> None:
    assert QueueFullError("full", retry_after_s=7).headers == {"Retry-After": "7"}


def test_a_detail_that_repeats_the_caller_is_bounded() -> None:
    assert ServiceError("x" * 1000).detail == "x" * 1000
    assert ServiceError("x" * 9999).detail == "x" * 1000 + "..."


def test_a_problem_document_has_what_rfc_9457_names() -> None:
    assert problem(status=429, code="queue-full", detail="full", request_id="id") == {
        "type": "urn:faster-rcnn-service:queue-full",
        "title": "Too Many Requests",
        "status": 429,
        "detail": "full",
        "request_id": "id",
    }
