from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from service.loadtest.generator import DROPPED, Generator
from service.loadtest.plan import Plan, Target
from service.loadtest.samples import Samples
from service.loadtest.summary import quantile
from service.loadtest.transport import GARBLED, LOST, TIMED_OUT

by_both = pytest.mark.parametrize("transport", ["httpx", "lean"])

# Of a busy machine: threads wait for a core, timers are late. It only ever adds to a latency, so what is too high is
# measured again, and the least of each percentile counts. What is too low is wrong at once.
NOISE_S = 0.05
ATTEMPTS = 4


def check_percentiles(run: Callable[[], Samples], bounds: dict[float, tuple[float, float]]) -> None:
    """That the quantiles which a run reports lie between these seconds, but for the noise."""
    least = dict.fromkeys(bounds, math.inf)
    for _ in range(ATTEMPTS):
        latency = run().latency
        least = {share: min(known, quantile(latency, share)) for share, known in least.items()}
        if all(least[share] < high + NOISE_S for share, (_, high) in bounds.items()):
            break
    for share, (low, high) in bounds.items():
        assert low < least[share] < high + NOISE_S, f"p{share * 100:g}"


def arrivals(**plan: Any) -> list[float]:
    target = Target("h", 1, "/", tls=False)
    return list(Plan(target=target, images=(b"",), warmup_s=0.0, **plan).arrivals())


def problem(status: int, code: str) -> bytes:
    body = f'{{"type":"urn:faster-rcnn-service:{code}"}}'
    return f"HTTP/1.1 {status} No\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@pytest.mark.parametrize(("transport", "rate", "count"), [("httpx", 100.0, 300), ("lean", 500.0, 2000)])
def test_percentiles_of_a_known_distribution(measure: Any, transport: str, rate: float, count: int) -> None:
    """Delays of 0.05 s and an exponential of mean 0.1 s: the quantile q is 0.05 - 0.1 ln(1 - q)."""
    mean_s = 0.1
    delays = 0.05 + np.random.default_rng(5).exponential(mean_s, 2 * count)
    bounds = {}
    for share in (0.5, 0.9, 0.99):
        expected = 0.05 - mean_s * math.log(1 - share)
        # The standard error of a quantile: sqrt(q (1 - q) / N) over the density there, which is (1 - q) / mean.
        error = mean_s * math.sqrt(share / (1 - share) / count)
        bounds[share] = expected - 4 * error, expected + 4 * error

    def run() -> Samples:
        plan = {"rate": rate, "duration_s": count / rate, "seed": 3, "transport": transport}
        samples, _ = measure(lambda n, now: float(delays[n]), **plan)
        assert samples.succeeded.all()
        assert abs(len(samples) - count) < 4 * math.sqrt(count)
        return samples

    check_percentiles(run, bounds)


def test_a_queue_is_seen_as_each_arrival_would_see_it(measure: Any) -> None:
    """One at a time, 20 ms each, at 80 % load: Lindley's recursion tells each latency from the arrivals alone."""
    service_s, plan = 0.02, {"rate": 40.0, "duration_s": 4.0, "seed": 11}
    ideal, end = [], 0.0
    for at in arrivals(**plan):
        end = max(end, at) + service_s
        ideal.append(end - at)
    expected = {share: quantile(np.array(ideal), share) for share in (0.5, 0.9, 0.99)}
    assert expected[0.9] > 3 * service_s  # or the queue would be no test

    def run() -> Samples:
        free_at = 0.0

        def delay_s(number: int, now: float) -> float:
            nonlocal free_at
            free_at = max(free_at, now) + service_s
            return free_at - now

        samples, _ = measure(delay_s, **plan)
        assert len(samples) == len(ideal)
        return samples

    check_percentiles(run, {share: (value - 0.002, value) for share, value in expected.items()})


@pytest.mark.parametrize(("transport", "rate"), [("httpx", 30.0), ("lean", 100.0)])
def test_coordinated_omission_is_corrected(measure: Any, transport: str, rate: float) -> None:
    """The service stands still from 1 s to 2 s. All who were to arrive meanwhile wait for its end."""
    plan = {"rate": rate, "duration_s": 3.0, "seed": 2, "transport": transport}
    times = np.array(arrivals(**plan))
    ideal = np.where((times >= 1) & (times < 2), 2 - times, 0)
    expected = {share: quantile(ideal, share) for share in (0.75, 0.9, 0.99)}
    assert expected[0.75] > 0.1

    def run() -> Samples:
        return measure(lambda n, now: 2 - now if 1 <= now < 2 else 0.0, **plan)[0]  # type: ignore[no-any-return]

    check_percentiles(run, {share: (value - 0.03, value) for share, value in expected.items()})


@by_both
def test_arrivals_wait_for_no_answer_and_use_connections_again(measure: Any, transport: str) -> None:
    plan = {"rate": 100.0, "duration_s": 3.0, "seed": 1, "transport": transport}
    samples, service = measure(lambda n, now: 0.2, **plan)  # 20 at a time, and more where the machine is busy
    expected = arrivals(**plan)
    assert np.sort(samples.intended) == pytest.approx(expected, abs=1e-6)
    assert (samples.sent >= samples.intended).all()
    assert 10 < service.connections < 0.75 * len(expected)


@by_both
def test_a_closed_loop_keeps_so_many_in_flight(measure: Any, transport: str) -> None:
    samples, service = measure(lambda n, now: 0.05, concurrency=4, duration_s=1.0, transport=transport)
    assert service.connections == 4
    overlapping = [np.count_nonzero((samples.sent <= at) & (samples.done > at)) for at in np.arange(0.1, 0.9, 0.05)]
    assert max(overlapping) == 4
    assert np.mean(overlapping) > 2
    assert len(samples) <= 4 * 20
    assert np.median(samples.sent - samples.intended) < NOISE_S


@by_both
def test_images_are_sent_in_turn_with_what_the_service_needs(measure: Any, transport: str) -> None:
    _, service = measure(
        images=(b"one", b"two", b"three"), concurrency=1, api_key="secret", timeout_s=1.5, transport=transport
    )
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
@pytest.mark.parametrize(
    "plan",
    [
        {"rate": 60.0, "transport": "lean"},
        {"concurrency": 2, "transport": "lean"},
        {"concurrency": 2, "transport": "httpx"},
    ],
)
def test_failures_are_told_by_kind_and_the_test_goes_on(measure: Any, answer: bytes, failure: str, plan: Any) -> None:
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    samples, _ = measure(answer=lambda n: answer if n % 2 else ok, duration_s=0.5, **plan)
    kinds = Counter(samples.failures)
    assert set(kinds) == {"", failure}
    assert abs(kinds[""] - kinds[failure]) <= 2 + kinds[""] * (failure == LOST)


@by_both
def test_no_answer_in_time(measure: Any, transport: str) -> None:
    samples, _ = measure(lambda n, now: 30.0, rate=20.0, duration_s=0.3, timeout_s=0.1, transport=transport)
    assert set(samples.failures) == {TIMED_OUT}
    assert (samples.latency < 10).all()


@by_both
def test_arrivals_beyond_the_bound_are_counted_as_dropped(measure: Any, transport: str) -> None:
    samples, service = measure(lambda n, now: 1.0, rate=100.0, duration_s=0.5, most_in_flight=5, transport=transport)
    kinds = Counter(samples.failures)
    assert kinds[""] == len(service.received) == 5
    assert kinds[DROPPED] == len(arrivals(rate=100.0, duration_s=0.5)) - 5


@by_both
def test_a_connection_that_the_service_closes_is_replaced(measure: Any, transport: str) -> None:
    last = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
    samples, service = measure(answer=lambda n: last, concurrency=1, duration_s=0.3, transport=transport)
    assert samples.succeeded.all()
    assert service.connections == len(samples) > 2


@by_both
def test_nobody_there(transport: Any) -> None:
    target = Target("127.0.0.1", 1, "/", tls=False)
    plan = Plan(target=target, images=(b"",), rate=20.0, duration_s=0.3, warmup_s=0.0, transport=transport)
    samples = asyncio.run(Generator(plan).run(0.0))
    assert len(set(samples.failures)) == 1
    assert samples.failures[0].startswith("no connection: Connect")
    assert len(samples) == len(arrivals(rate=20.0, duration_s=0.3))
