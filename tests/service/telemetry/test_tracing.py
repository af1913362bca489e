from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service.app import create_app
from service.settings import Settings
from service.telemetry.tracing import TracingError, exporting_provider
from tests.support.fakes import FakeDetector, red_png
from tests.support.servers import served

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = ["read", "decode", "queue", "inference", "encode"]
Traced = Callable[..., AbstractAsyncContextManager[tuple[httpx.AsyncClient, InMemorySpanExporter]]]


@pytest.fixture
def every_stage_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast the machine is."""
    monkeypatch.setattr("service.telemetry.stages._SHORTEST_SPAN_S", 0.0)


@pytest.fixture
def every_stage_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.telemetry.stages._SHORTEST_SPAN_S", 60.0)


@pytest.fixture
def traced() -> Traced:
    """`traced(detector)`: a client of a service, and what its spans are written into."""

    @asynccontextmanager
    async def start(
        *detectors: FakeDetector, **settings: Any
    ) -> AsyncIterator[tuple[httpx.AsyncClient, InMemorySpanExporter]]:
        written = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(written))
        app = create_app(Settings(**settings), load=lambda _: list(detectors), tracer_provider=provider)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://t") as client,
        ):
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.001)
            yield client, written
        provider.shutdown()

    return start


def tree(spans: tuple[ReadableSpan, ...]) -> tuple[ReadableSpan, list[ReadableSpan]]:
    """The span of the one request, and those right below it in the order in which they began."""
    (server,) = [span for span in spans if span.kind is SpanKind.SERVER]
    below = [span for span in spans if span.parent is not None and span.parent.span_id == server.context.span_id]
    assert len(below) == len(spans) - 1
    return server, sorted(below, key=lambda span: span.start_time or 0)


@pytest.mark.anyio
@pytest.mark.usefixtures("every_stage_is_long")
async def test_a_span_for_each_stage_under_the_callers_own(traced: Traced) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "abc"}
    async with traced(FakeDetector(seconds=0.02)) as (client, written):
        assert (await client.post("/detect", content=red_png(1), headers=headers)).status_code == 200
        server, stages = tree(written.get_finished_spans())
    assert server.name == "POST /detect"
    assert f"{server.context.trace_id:032x}" == TRACE
    assert server.parent is not None
    assert f"{server.parent.span_id:016x}" == PARENT
    assert server.attributes is not None
    assert server.attributes["http.route"] == "/detect"
    assert server.attributes["http.response.status_code"] == 200
    assert server.attributes["frcnn.request_id"] == "abc"
    assert [span.name for span in stages] == STAGES
    for earlier, later in pairwise(stages):
        assert (earlier.end_time or 0) <= (later.start_time or 0) + 5_000_000  # two clocks: 5 ms
    inference = stages[STAGES.index("inference")]
    assert (inference.end_time or 0) - (inference.start_time or 0) >= 20_000_000
    assert inference.attributes == {"frcnn.batch_size": 1}


@pytest.mark.anyio
@pytest.mark.usefixtures("every_stage_is_short")
async def test_a_short_stage_is_an_attribute_of_the_request(traced: Traced) -> None:
    async with traced(FakeDetector(seconds=0.02)) as (client, written):
        assert (await client.post("/detect", content=red_png(1))).status_code == 200
        server, below = tree(written.get_finished_spans())
    assert not below
    assert server.attributes is not None
    for stage in STAGES:
        assert isinstance(milliseconds := server.attributes[f"frcnn.{stage}_ms"], float)
        assert milliseconds > (19 if stage == "inference" else 0)
    assert server.attributes["frcnn.batch_size"] == 1


@pytest.mark.anyio
@pytest.mark.usefixtures("every_stage_is_long")
async def test_each_image_of_a_batch_has_its_stages(traced: Traced) -> None:
    async with traced(FakeDetector()) as (client, written):
        await client.post("/detect/batch", files=[("file", red_png(1)), ("file", red_png(2)), ("file", b"junk")])
        server, stages = tree(written.get_finished_spans())
    assert server.name == "POST /detect/batch"
    assert sorted(span.name for span in stages) == sorted(
        ["read", *["decode"] * 3, *["queue", "inference"] * 2, "encode"]
    )


@pytest.mark.anyio
async def test_a_stage_that_fails_says_so_and_nothing_of_the_image(traced: Traced) -> None:
    detector = FakeDetector()
    detector.gate.clear()
    async with traced(detector) as (client, written):
        await client.post("/detect", content=b"\x89PNG\r\n\x1a\n\x00\x00\x00\rSECRET")
        _, (decode,) = tree(written.get_finished_spans())
        written.clear()
        await client.post("/detect", content=red_png(1), headers={"X-Request-Timeout-Ms": "50"})
        server, (*_, queue) = tree(written.get_finished_spans())
        detector.gate.set()
    assert (decode.name, decode.status.status_code) == ("decode", StatusCode.ERROR)
    assert decode.attributes == {"error.type": "BrokenImageError"}
    assert "SECRET" not in decode.to_json()
    assert (queue.name, queue.attributes) == ("queue", {"error.type": "CancelledError"})  # by the deadline
    assert server.status.status_code is StatusCode.ERROR


@pytest.mark.anyio
async def test_probes_scrapes_and_keys_leave_no_trace(traced: Traced) -> None:
    async with traced(FakeDetector(), api_keys="SECRET-KEY") as (client, written):
        for path in ("/healthz", "/livez", "/readyz", "/metrics"):
            await client.get(path, headers={"X-API-Key": "SECRET-KEY"})
        assert not written.get_finished_spans()
        await client.get("/labels", headers={"Authorization": "Bearer SECRET-KEY"})
        await client.get("/labels", headers={"X-API-Key": "SECRET-KEY-2"})
        spans = written.get_finished_spans()
    assert [span.attributes["http.response.status_code"] for span in spans if span.attributes] == [200, 401]
    assert not any("SECRET" in span.to_json() for span in spans)


@pytest.mark.anyio
async def test_a_broken_traceparent_begins_a_trace_of_its_own(traced: Traced) -> None:
    async with traced(FakeDetector()) as (client, written):
        for broken in ("", "junk", f"00-{'0' * 32}-{PARENT}-01", "00-" * 1000):
            assert (await client.get("/labels", headers={"traceparent": broken})).status_code == 200
        assert [span.parent for span in written.get_finished_spans()] == [None] * 4


@pytest.mark.anyio
async def test_the_log_names_the_trace(traced: Traced, caplog: pytest.LogCaptureFixture) -> None:
    from service.telemetry.logs import RequestFields

    caplog.handler.addFilter(RequestFields())
    caplog.set_level("INFO", "service.access")
    async with traced(FakeDetector()) as (client, _):
        await client.get("/labels", headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "abc"})
    (record,) = [record for record in caplog.records if record.__dict__.get("request_id") == "abc"]
    assert record.__dict__["trace_id"] == TRACE


def test_spans_reach_a_collector_before_the_service_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "named-by-the-operator")
        with served(create_app(Settings(), load=lambda _: [FakeDetector()])) as url:
            assert httpx.post(f"{url}/detect", content=red_png(1)).status_code == 200
        collector.shutdown()
        thread.join()
    assert {path for path, _ in received} == {"/v1/traces"}
    sent = b"".join(body for _, body in received)
    for name in (b"POST /detect", *(stage.encode() for stage in STAGES), b"named-by-the-operator"):
        assert name in sent


def test_a_collector_that_is_gone_does_not_hold_up_the_end() -> None:
    app = create_app(Settings(otlp_endpoint="http://127.0.0.1:9"), load=lambda _: [FakeDetector()])
    with served(app) as url:
        assert httpx.post(f"{url}/detect", content=red_png(1)).status_code == 200
        ended = time.monotonic()
    assert time.monotonic() - ended < 15


def test_an_address_that_is_none_is_rejected() -> None:
    with pytest.raises(TracingError, match="localhost:4318"):
        exporting_provider(Settings(otlp_endpoint="localhost:4317"), version="1")
    assert exporting_provider(Settings(otlp_endpoint=""), version="1") is None


_IMPORTS = """
import sys
{}
print([name for name in sys.modules if name.startswith("opentelemetry.sdk.") or name == "requests"])
"""
_OFF = """
from service.app import create_app
from service.settings import Settings
create_app(Settings())
"""
_WITHOUT_THE_EXTRA = """
sys.modules["opentelemetry.sdk"] = None
from service.settings import Settings
from service.telemetry.tracing import exporting_provider
try:
    exporting_provider(Settings(otlp_endpoint="http://x"), version="1")
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("script", "printed"),
    [
        (_OFF, ["[]"]),
        (
            _WITHOUT_THE_EXTRA,
            ["traces need an extra: make install in a clone; the container image has it", "[]"],
        ),
    ],
    ids=["off", "without the extra"],
)
def test_the_sdk_is_imported_only_when_it_is_needed(script: str, printed: list[str]) -> None:
    command = [sys.executable, "-c", _IMPORTS.format(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == printed, done.stderr
