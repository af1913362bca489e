"""Traces, where a collector for them is named. FastAPI makes the span of a request, `stages` those within.

Without a collector, OpenTelemetry's SDK is not even imported, and its API does nothing.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from fastapi.telemetry import TelemetryConfig
from starlette.types import Scope

from service.settings import Settings
from service.wire import PROBE_PATHS

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SERVICE_NAME = "faster-rcnn-service"
_LONGEST_FAREWELL_S = 3.0
_UNTRACED = PROBE_PATHS | {"/metrics"}


class TracingError(ValueError):
    """Traces are asked for and cannot be sent. The message says what to do."""


def exporting_provider(settings: Settings, *, version: str) -> TracerProvider | None:
    """Make the provider that sends spans to the collector; None if none is named. The caller shuts it down.

    Args:
        settings: name the collector. OpenTelemetry's own variables set the rest: OTEL_SERVICE_NAME,
            OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER and so on.
        version: of the service.

    Raises:
        TracingError: the extra `otel` is not installed, or the address is none.
    """
    endpoint = settings.otlp_endpoint
    if not endpoint:
        return None
    if not endpoint.startswith(("http://", "https://")):
        raise TracingError(f"traces go to an address like http://localhost:4318, not {endpoint!r}")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingError("traces need an extra: make install in a clone; the container image has it") from error

    who = Resource({"service.name": SERVICE_NAME, "service.version": version})
    provider = TracerProvider(resource=who.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")))
    return provider


def request_telemetry(provider: TracerProvider | None) -> TelemetryConfig:
    """How FastAPI is to trace: a span for each request, under the caller's if a `traceparent` names it."""
    config: TelemetryConfig = {
        "tracing": provider is not None,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": _is_untraced,
    }
    if provider is not None:
        config["tracer_provider"] = provider
    return config


async def send_what_is_left(provider: TracerProvider) -> None:
    """End the provider; a collector that does not answer delays this only briefly."""
    ending = threading.Thread(target=provider.shutdown, name="traces", daemon=True)
    ending.start()
    await asyncio.to_thread(ending.join, _LONGEST_FAREWELL_S)


def _is_untraced(scope: Scope) -> bool:
    """Skip probes and scrapes: they come all day, and their traces say nothing."""
    return scope.get("path") in _UNTRACED
