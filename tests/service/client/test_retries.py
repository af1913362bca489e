from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import (
    AnswerError,
    AuthenticationError,
    ConnectionLostError,
    DeadlineError,
    ProblemError,
    QueueFullError,
    RetryPolicy,
    ServerDeadlineError,
    ServerError,
    UnavailableError,
)
from service.client.exchange import Exchanges
from service.client.retries import retry_after_s
from tests.support.clients import FOUND, Sync, refusal


class Script:
    """Answers with each outcome in turn and keeps the requests."""

    def __init__(self, *outcomes: httpx.Response | Exception) -> None:
        self.outcomes = list(outcomes)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        # A copy: a response can be read by one client only.
        return httpx.Response(outcome.status_code, headers=outcome.headers, content=outcome.content)


@pytest.mark.parametrize(
    "first",
    [
        refusal(429),
        refusal(503),
        *(httpx.Response(status, text="a proxy's") for status in (500, 502, 503)),
        httpx.ConnectError("no"),
        httpx.ReadError(""),
    ],
)
def test_what_may_pass_is_tried_again(calling: type[Sync], first: Any) -> None:
    script = Script(first, httpx.Response(200, json=FOUND))
    assert len(calling(script).detect(b"image")) == 1
    assert [request.content for request in script.requests] == [b"image", b"image"]


@pytest.mark.parametrize("status", [400, 401, 413, 415, 422, 500, 502, 504])
def test_what_would_end_the_same_is_not(calling: type[Sync], status: int) -> None:
    script = Script(refusal(status), httpx.Response(200, json=FOUND))
    with pytest.raises(ProblemError) as caught:
        calling(script).detect(b"image")
    assert len(script.requests) == 1
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (status, "code", "id")
    assert str(caught.value) == f"{status} code: words"


@pytest.mark.parametrize(
    ("status", "kinds"),
    [
        (401, (AuthenticationError,)),
        (403, (AuthenticationError,)),
        (404, (ProblemError,)),
        (429, (QueueFullError,)),
        (502, (ServerError,)),
        (503, (UnavailableError, ServerError)),
        (504, (ServerDeadlineError, DeadlineError, ServerError)),
    ],
)
def test_each_refusal_has_its_type(calling: type[Sync], status: int, kinds: tuple[type[Exception], ...]) -> None:
    for answer in (refusal(status), httpx.Response(status, text="a proxy's")):
        with pytest.raises(ProblemError) as caught:
            calling(Script(answer), retry=RetryPolicy(attempts=1)).detect(b"image")
        assert all(isinstance(caught.value, kind) for kind in kinds)


def test_attempts_are_bounded_and_the_last_refusal_is_told(calling: type[Sync]) -> None:
    script = Script(*[refusal(429)] * 9)
    with pytest.raises(QueueFullError):
        calling(script, retry=RetryPolicy(attempts=3, first_pause_s=0)).detect(b"image")
    assert len(script.requests) == 3


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={**FOUND, "boxes": [[1]]}),
        httpx.Response(307, headers={"location": "https://elsewhere/"}),
    ],
)
def test_another_server_is_told_from_the_service(calling: type[Sync], answer: httpx.Response) -> None:
    with pytest.raises(AnswerError, match="right address"):
        calling(Script(answer)).detect(b"image")


def test_the_key_and_the_time_left_are_sent(calling: type[Sync]) -> None:
    script = Script(refusal(503), httpx.Response(200, json=FOUND))
    pause = RetryPolicy(first_pause_s=0)
    calling(script, api_key="secret", timeout_s=5, retry=pause).detect(b"image", score_threshold=0.5, labels=["a", 2])
    times = [int(request.headers["x-request-timeout-ms"]) for request in script.requests]
    assert 5000 >= times[0] >= times[1] > 1000
    assert script.requests[0].headers["authorization"] == "Bearer secret"
    assert dict(script.requests[0].url.params) == {"score_threshold": "0.5", "labels": "a,#2"}
    script = Script(httpx.Response(200, json=FOUND))
    calling(script).detect(b"image", labels=["a, b", 3])
    assert script.requests[0].url.params.get_list("labels") == ["a, b", "#3"]
    calling(Script(httpx.Response(200, json=FOUND)), timeout_s=1e9).detect(b"image")  # no more than the service takes


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_s(None) is None
    assert retry_after_s("3") == 3
    assert retry_after_s("soon") is None
    soon = format_datetime(datetime.fromtimestamp(time.time(), UTC) + timedelta(seconds=60), usegmt=True)
    assert 50 < (retry_after_s(soon) or 0) <= 60
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@pytest.mark.parametrize(
    ("outcome", "sent"),
    [
        (httpx.ReadError("reset"), 3),
        (httpx.RemoteProtocolError("disconnected"), 3),
        (httpx.Response(502, text="a proxy's"), 3),
        (httpx.ConnectError("refused"), 5),
        (refusal(503), 5),
        (refusal(502), 1),
    ],
)
def test_what_may_have_broken_the_service_is_sent_again_less_often(
    calling: type[Sync], outcome: Any, sent: int
) -> None:
    script = Script(*[outcome] * 9)
    with pytest.raises((ConnectionLostError, ProblemError)):
        calling(script, retry=RetryPolicy(first_pause_s=0)).detect(b"image")
    assert len(script.requests) == sent


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), "5"])
def test_a_time_that_is_none_is_told_at_once(calling: type[Sync], timeout_s: Any) -> None:
    with pytest.raises(ValueError, match="seconds over 0"):
        calling(Script()).detect(b"image", timeout_s=timeout_s)
    with pytest.raises(ValueError, match="seconds over 0"):
        Exchanges("http://x", api_key=None, timeout_s=timeout_s, retry=RetryPolicy())


@pytest.mark.parametrize("one", ["a.jpg", b"bytes", Path("a.jpg")])
def test_one_image_is_told_from_many(calling: type[Sync], one: Any) -> None:
    with pytest.raises(TypeError, match="into a list"):
        list(calling(Script()).detect_many(one))
