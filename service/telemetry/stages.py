"""Times the stages of a request for Prometheus and as spans: read, decode, queue, inference, encode."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar

from opentelemetry.trace import Span, Status, StatusCode, Tracer, TracerProvider

from service.telemetry.metrics import Histogram, Metrics


class Answered(Protocol):
    """What an answer says of the time that it took."""

    @property
    def queue_s(self) -> float: ...

    @property
    def inference_s(self) -> float: ...

    @property
    def batch_size(self) -> int: ...


A = TypeVar("A", bound=Answered)


class Stages:
    """Times the stages of requests.

    Args:
        metrics: where to count.
        tracer_provider: where spans go; nowhere, by default.
    """

    def __init__(self, metrics: Metrics, tracer_provider: TracerProvider | None = None) -> None:
        self._seconds = metrics.stage_seconds
        self._tracer = None if tracer_provider is None else tracer_provider.get_tracer("service")

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time what is done within."""
        timed = _Timed(self._seconds.labels(name))
        return timed if self._tracer is None else _traced(timed, self._tracer, name)

    async def detection(self, submitted: Awaitable[A]) -> A:
        """Wait for an answer, and make the spans of its queue and inference from its times.

        The batcher counts them for Prometheus: it has them also of those who no longer wait.
        """
        if self._tracer is None:
            return await submitted
        asked_ns = time.time_ns()
        try:
            answer = await submitted
        except BaseException as error:
            _mark(self._tracer.start_span("queue", start_time=asked_ns), error).end()
            raise
        answered_ns = time.time_ns()
        started_ns = answered_ns - round(answer.inference_s * 1e9)
        queued_ns = started_ns - round(answer.queue_s * 1e9)
        self._tracer.start_span("queue", start_time=queued_ns).end(started_ns)
        size = {"frcnn.batch_size": answer.batch_size}
        self._tracer.start_span("inference", start_time=started_ns, attributes=size).end(answered_ns)
        return answer


class _Timed:
    """A class, as every request goes by it several times: a generator takes three times as long."""

    __slots__ = ("_histogram", "_started")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._histogram.observe(time.perf_counter() - self._started)


@contextmanager
def _traced(timed: _Timed, tracer: Tracer, name: str) -> Iterator[None]:
    with timed, _span(tracer, name):
        yield


@contextmanager
def _span(tracer: Tracer, name: str) -> Iterator[None]:
    # An exception's message may tell of the image: only its name goes into the span.
    with tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as span:
        try:
            yield
        except BaseException as error:
            _mark(span, error)
            raise


def _mark(span: Span, error: BaseException) -> Span:
    span.set_attribute("error.type", type(error).__name__)
    span.set_status(Status(StatusCode.ERROR))
    return span
