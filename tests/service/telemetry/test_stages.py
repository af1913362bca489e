from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from service.telemetry.metrics import Metrics
from service.telemetry.stages import Stages


@dataclass(frozen=True)
class Answer:
    queue_s: float = 0.25
    inference_s: float = 0.5
    batch_size: int = 3


async def answered() -> Answer:
    return Answer()


async def failed() -> Answer:
    raise LookupError("what is in the image")


def count(metrics: Metrics, stage: str) -> float:
    text = metrics.exposition()[0].decode()
    [line] = [line for line in text.splitlines() if line.startswith(f'frcnn_stage_seconds_count{{stage="{stage}"}}')]
    return float(line.split()[-1])


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.mark.parametrize("traced", [False, True])
def test_a_stage_is_counted_whether_it_succeeds_or_fails(traced: bool, provider: TracerProvider) -> None:
    metrics = Metrics()
    stages = Stages(metrics, provider if traced else None)
    for stage in ("read", "decode"):
        with stages.stage(stage):
            pass
        with pytest.raises(ValueError, match="x"), stages.stage(stage):
            raise ValueError("x")
        assert count(metrics, stage) == 2


def test_long_stages_are_spans_and_short_ones_attributes(
    provider: TracerProvider, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    stages = Stages(Metrics(), provider)
    with provider.get_tracer("test").start_as_current_span("request"):
        for stage, seconds in (("read", 0.0005), ("decode", 0.002), ("encode", 0.0001)):
            # The module's own clock: threads of other tests may read the real one.
            own = SimpleNamespace(perf_counter=lambda seconds=seconds: next(clock) * seconds, time_ns=time.time_ns)
            monkeypatch.setattr("service.telemetry.stages.time", own)
            with stages.stage(stage):
                pass
    decode, request = exporter.get_finished_spans()
    assert (decode.name, decode.parent and decode.parent.span_id) == ("decode", request.context.span_id)
    assert decode.start_time is not None
    assert decode.end_time is not None
    assert (decode.end_time - decode.start_time) / 1e9 == pytest.approx(0.002, rel=1e-3)
    assert dict(request.attributes or {}) == pytest.approx({"frcnn.read_ms": 0.5, "frcnn.encode_ms": 0.1})


@pytest.mark.anyio
async def test_queue_and_inference_are_spans_of_the_answers_own_times(
    provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    assert await Stages(Metrics(), provider).detection(answered()) == Answer()
    queue, inference = exporter.get_finished_spans()
    assert (queue.name, inference.name) == ("queue", "inference")
    assert queue.end_time == inference.start_time
    assert queue.end_time is not None
    assert queue.start_time is not None
    assert (queue.end_time - queue.start_time) / 1e9 == pytest.approx(0.25)
    assert inference.attributes == {"frcnn.batch_size": 3}


@pytest.mark.anyio
async def test_a_failure_is_named_without_its_message(provider: TracerProvider, exporter: InMemorySpanExporter) -> None:
    stages = Stages(Metrics(), provider)
    with pytest.raises(LookupError):
        await stages.detection(failed())
    with pytest.raises(ValueError, match="the image"), stages.stage("decode"):
        raise ValueError("what is in the image")
    for span, name in zip(exporter.get_finished_spans(), ("LookupError", "ValueError"), strict=True):
        assert span.attributes == {"error.type": name}
        assert span.status.status_code is StatusCode.ERROR
        assert "image" not in span.to_json()


@pytest.mark.anyio
async def test_without_traces_an_answer_passes_through() -> None:
    assert await Stages(Metrics()).detection(answered()) == Answer()
