from __future__ import annotations

from random import Random
from typing import Any

import httpx

from service import wire
from service.client import (
    ConnectionLostError,
    DeadlineError,
    QueueFullError,
    RetryPolicy,
)
from service.client.exchange import LONGEST_TIMEOUT_MS, Exchanges
from tests.support.clients import FOUND, rejection


def test_the_client_asks_for_no_longer_than_the_service_takes() -> None:
    assert LONGEST_TIMEOUT_MS == wire.LONGEST_TIMEOUT_MS  # written twice, as the client needs no server's packages


def steps(exchanges: Exchanges, *outcomes: Any) -> tuple[list[float], Exception | None]:
    """The pauses of one exchange that meets these outcomes, and how it fails."""
    exchange, pauses = exchanges.detect(b"image", {}), []
    step = next(exchange)
    for outcome in outcomes:
        try:
            step = exchange.send(outcome)
            while not isinstance(step, httpx.Request):
                pauses.append(step)
                step = exchange.send(None)
        except StopIteration:
            return pauses, None
        except Exception as error:
            return pauses, error
    raise AssertionError("it wants more")


def test_pauses_grow_are_bounded_and_never_shorter_than_asked() -> None:
    retry = RetryPolicy(attempts=6, first_pause_s=1, longest_pause_s=4)
    seen = []
    for seed in range(200):
        exchanges = Exchanges("http://x", api_key=None, timeout_s=1000, retry=retry, random=Random(seed))
        pauses, _ = steps(exchanges, *[rejection(429)] * 5, httpx.Response(200, json=FOUND))
        seen.append(pauses)
    for bound, drawn in zip((1, 2, 4, 4, 4), zip(*seen, strict=True), strict=True):
        assert 0 <= min(drawn) < 0.1 * bound
        assert 0.9 * bound < max(drawn) <= bound
    asked = Exchanges("http://x", api_key=None, timeout_s=1000, retry=retry)
    assert 7 <= steps(asked, rejection(503, **{"retry-after": "7"}), httpx.Response(200, json=FOUND))[0][0] <= 8


def test_a_pause_past_the_deadline_is_not_begun() -> None:
    exchanges = Exchanges("http://x", api_key=None, timeout_s=5, retry=RetryPolicy(), clock=lambda: 0.0)
    pauses, error = steps(exchanges, rejection(429, **{"retry-after": "5"}))
    assert pauses == []
    assert isinstance(error, QueueFullError)
    assert error.retry_after_s == 5


def test_each_step_of_a_request_has_the_time_that_is_left() -> None:
    now = 0.0
    exchanges = Exchanges("http://x", api_key=None, timeout_s=20, retry=RetryPolicy(), clock=lambda: now)
    request = next(exchanges.detect(b"image", {}))
    assert isinstance(request, httpx.Request)
    left = request.extensions["timeout"]
    assert (left.get("connect"), left.get("write")) == (5, 20)
    now = 18
    assert (left.get("connect"), left.get("read")) == (2, 2)
    now = 30
    assert 0 < left.get("read") < 0.01


def test_a_timeout_is_a_deadline_and_a_broken_connection_is_not() -> None:
    exchanges = Exchanges("http://x", api_key=None, timeout_s=20, retry=RetryPolicy(attempts=1))
    request = httpx.Request("POST", "http://x/detect")
    assert isinstance(steps(exchanges, httpx.ReadTimeout("", request=request))[1], DeadlineError)
    for kind in (httpx.ConnectTimeout, httpx.ConnectError, httpx.RemoteProtocolError):
        assert isinstance(steps(exchanges, kind("", request=request))[1], ConnectionLostError)
