from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import (
    ConnectionLostError,
    ProblemError,
    QueueFullError,
    RetryPolicy,
)
from service.client.exchange import Exchanges
from service.client.retries import retry_after_s
from tests.support.clients import FOUND, Script, Sync, rejection


@pytest.mark.parametrize(
    "first",
    [
        rejection(429),
        rejection(503),
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
    script = Script(rejection(status), httpx.Response(200, json=FOUND))
    with pytest.raises(ProblemError) as caught:
        calling(script).detect(b"image")
    assert len(script.requests) == 1
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (status, "code", "id")
    assert str(caught.value) == f"{status} code: words"


def test_attempts_are_bounded_and_the_last_rejection_is_told(calling: type[Sync]) -> None:
    script = Script(*[rejection(429)] * 9)
    with pytest.raises(QueueFullError):
        calling(script, retry=RetryPolicy(attempts=3, first_pause_s=0)).detect(b"image")
    assert len(script.requests) == 3


def test_the_key_and_the_time_left_are_sent(calling: type[Sync]) -> None:
    script = Script(rejection(503), httpx.Response(200, json=FOUND))
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
        (rejection(503), 5),
        (rejection(502), 1),
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
