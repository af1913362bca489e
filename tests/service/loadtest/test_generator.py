from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import numpy as np
import pytest

from service.loadtest.generator import DROPPED, Generator
from service.loadtest.plan import Plan, Target
from service.loadtest.transport import GARBLED, LOST, TIMED_OUT
from tests.support.timed_service import measure


def arrivals(**plan: Any) -> list[float]:
    target = Target("h", 1, "/", tls=False)
    return list(Plan(target=target, images=(b"",), warmup_s=0.0, **plan).arrivals())


def problem(status: int, code: str) -> bytes:
    body = f'{{"type":"urn:faster-rcnn-service:{code}"}}'
    return f"HTTP/1.1 {status} No\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def numbered(number: int) -> bytes:
    return f"HTTP/1.1 200 OK\r\nServer-Timing: {number}\r\nContent-Length: 0\r\n\r\n".encode()


def test_a_latency_holds_all_the_time_that_the_service_took() -> None:
    """A busy machine only adds to a latency, so each is held from below, and its ends by the server's own clock."""
    delays = 0.05 + np.random.default_rng(5).exponential(0.1, 600)
    samples, service = measure(lambda n, now: float(delays[n]), answer=numbered, rate=100.0, duration_s=2.0, seed=3)
    assert samples.succeeded.all()
    numbers = np.array([int(timing) for timing in samples.timings])
    assert sorted(numbers) == list(range(len(samples)))
    received = np.array([service.times[number] for number in numbers]) - service.began
    responded = np.array([service.responded[number] for number in numbers]) - service.began
    assert (samples.intended <= samples.sent).all()
    assert (samples.sent <= received).all()
    assert (responded <= samples.done).all()
    assert (samples.latency > delays[numbers] - 0.002).all()  # the resolution of the event loop's timers


def test_coordinated_omission_is_corrected() -> None:
    """The service stands still from 1 s to 2 s. All who were to arrive meanwhile wait for its end."""
    plan: dict[str, Any] = {"rate": 30.0, "duration_s": 3.0, "seed": 2}
    samples, _ = measure(lambda n, now: 2 - now if 1 <= now < 2 else 0.0, **plan)
    expected = arrivals(**plan)
    assert np.sort(samples.intended) == pytest.approx(expected, abs=1e-6)
    stalled = (samples.intended >= 1) & (samples.intended < 2)
    assert stalled.sum() > 15
    assert (samples.latency[stalled] > 2 - samples.intended[stalled] - 0.002).all()


def test_arrivals_wait_for_no_answer_and_use_connections_again() -> None:
    plan: dict[str, Any] = {"rate": 30.0, "duration_s": 4.0, "seed": 1}
    samples, service = measure(lambda n, now: 0.2, **plan)  # 6 at a time, and more where the machine is busy
    expected = arrivals(**plan)
    assert np.sort(samples.intended) == pytest.approx(expected, abs=1e-6)
    assert (samples.sent >= samples.intended).all()
    assert 1 < service.connections < len(expected)


def test_a_closed_loop_keeps_so_many_in_flight() -> None:
    samples, service = measure(lambda n, now: 0.05, concurrency=4, duration_s=1.0)
    assert service.connections == 4
    overlapping = [np.count_nonzero((samples.sent <= at) & (samples.done > at)) for at in np.arange(0.1, 0.9, 0.05)]
    assert max(overlapping) == 4
    assert np.mean(overlapping) > 2
    assert len(samples) <= 4 * 20


def test_images_are_sent_in_turn_with_what_the_service_needs() -> None:
    _, service = measure(images=(b"one", b"two", b"three"), concurrency=1, api_key="secret", timeout_s=1.5)
    bodies = Counter(data.partition(b"\r\n\r\n")[2] for data in service.received)
    assert set(bodies) == {b"one", b"two", b"three"}
    assert max(bodies.values()) - min(bodies.values()) <= 1
    head = service.received[0].partition(b"\r\n\r\n")[0].decode().splitlines()
    assert head[0] == "POST /detect HTTP/1.1"
    assert {"Authorization: Bearer secret", "X-Request-Timeout-Ms: 1500"} <= set(head)


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (problem(429, "queue-full"), "429 queue-full"),
        (b"HTTP/1.1 502 Bad\r\nContent-Length: 4\r\n\r\n<ht>", "502"),
        (b"HTTP/1.1 307 Away\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", "307"),
        (b"hello\r\n\r\n", GARBLED),
        (b"", LOST),
    ],
)
@pytest.mark.parametrize("plan", [{"rate": 60.0}, {"concurrency": 2}])
def test_failures_are_told_by_kind_and_the_test_goes_on(answer: bytes, failure: str, plan: Any) -> None:
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    samples, _ = measure(answer=lambda n: answer if n % 2 else ok, duration_s=0.5, **plan)
    kinds = Counter(samples.failures)
    assert set(kinds) == {"", failure}
    assert abs(kinds[""] - kinds[failure]) <= 2 + kinds[""] * (failure == LOST)


def test_no_answer_in_time() -> None:
    samples, _ = measure(lambda n, now: 30.0, rate=20.0, duration_s=0.3, timeout_s=0.1)
    assert set(samples.failures) == {TIMED_OUT}
    assert (samples.latency < 10).all()


def test_arrivals_beyond_the_bound_are_counted_as_dropped() -> None:
    samples, service = measure(lambda n, now: 1.0, rate=100.0, duration_s=0.5, most_in_flight=5)
    kinds = Counter(samples.failures)
    assert kinds[""] == len(service.received) == 5
    assert kinds[DROPPED] == len(arrivals(rate=100.0, duration_s=0.5)) - 5


def test_a_connection_that_the_service_closes_is_replaced() -> None:
    last = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
    samples, service = measure(answer=lambda n: last, concurrency=1, duration_s=0.3)
    assert samples.succeeded.all()
    assert service.connections == len(samples) > 2


def test_nobody_there() -> None:
    target = Target("127.0.0.1", 1, "/", tls=False)
    plan = Plan(target=target, images=(b"",), rate=20.0, duration_s=0.3, warmup_s=0.0)
    samples = asyncio.run(Generator(plan).run(0.0))
    assert len(set(samples.failures)) == 1
    assert samples.failures[0].startswith("no connection: Connect")
    assert len(samples) == len(arrivals(rate=20.0, duration_s=0.3))
