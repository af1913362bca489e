"""Times the stages of a request for Prometheus and for traces: read, decode, queue, inference, encode.

A span costs a twentieth of a small request's processor time. So a stage that takes less than a millisecond has none: it
is an attribute of the request's span.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from opentelemetry import trace
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

_SHORTEST_SPAN_S = 0.001
_NO_ATTRIBUTES: Mapping[str, int] = {}


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
        histogram = self._seconds.labels(name)
        return _Timed(histogram) if self._tracer is None else _Traced(name, histogram, self._tracer)

    async def detection(self, submitted: Awaitable[A]) -> A:
        """Wait for an answer, and trace its queue and inference by its times.

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
        _trace(self._tracer, "queue", answer.queue_s, started_ns)
        _trace(self._tracer, "inference", answer.inference_s, answered_ns, {"frcnn.batch_size": answer.batch_size})
        return answer


class _Timed:
    """Counts the time of a stage. A class, as every request enters several."""

    __slots__ = ("_histogram", "_seconds", "_started")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> None:
        self._seconds = time.perf_counter() - self._started
        self._histogram.observe(self._seconds)


class _Traced(_Timed):
    """Traces the stage, too.

    The span is made when the stage is over, as to make it the current one costs a third more: what is logged within a
    stage has the trace's id all the same.
    """

    __slots__ = ("_name", "_tracer")

    def __init__(self, name: str, histogram: Histogram, tracer: Tracer) -> None:
        super().__init__(histogram)
        self._name = name
        self._tracer = tracer

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        super().__exit__(kind, error, traceback)
        _trace(self._tracer, self._name, self._seconds, time.time_ns(), error=error)


def _trace(
    tracer: Tracer,
    name: str,
    seconds: float,
    ended_ns: int,
    attributes: Mapping[str, int] = _NO_ATTRIBUTES,
    error: BaseException | None = None,
) -> None:
    """Make a span of a stage that was long or failed, or else an attribute of the request's span."""
    if seconds < _SHORTEST_SPAN_S and error is None:
        trace.get_current_span().set_attributes({f"frcnn.{name}_ms": round(seconds * 1e3, 3), **attributes})
        return
    span = tracer.start_span(name, start_time=ended_ns - round(seconds * 1e9), attributes=attributes)
    # An exception's message may describe the image: only its name goes into the span.
    (span if error is None else _mark(span, error)).end(ended_ns)


def _mark(span: Span, error: BaseException) -> Span:
    span.set_attribute("error.type", type(error).__name__)
    span.set_status(Status(StatusCode.ERROR))
    return span
