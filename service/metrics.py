"""What Prometheus sees. Every label has few values: routes as declared, never as requested."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_MODEL_LABELS = ("model", "weights", "version")
_DEVICE_LABELS = ("device", "name", "precision")
_REFUSALS = ("queue-full", "too-late", "pixels-full", "bytes-full")


class Metrics:
    """One service's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("frcnn_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self.request_seconds = Histogram(
            "frcnn_request_seconds", "From the first byte in to the last out.", ["route"], registry=self.registry,
            buckets=_SECONDS,
        )  # fmt: skip
        self.stage_seconds = Histogram(
            "frcnn_stage_seconds", "Time of one image in a stage.", ["stage"], registry=self.registry, buckets=_SECONDS
        )
        self.batch_size = Histogram(
            "frcnn_batch_size", "Images in a batch.", registry=self.registry, buckets=(1, 2, 4, 8, 16, 32, 64, 128)
        )
        self.rejected = Counter(
            "frcnn_images_rejected", "Images refused at the door.", ["reason"], registry=self.registry
        )
        for reason in _REFUSALS:
            # Told before the first: an increase is seen only from a value before it, and "none" is not "unknown".
            self.rejected.labels(reason)
        self.requests_in_flight = Gauge(
            "frcnn_requests_in_flight", "Requests being answered, of every route.", registry=self.registry
        )
        self.problems = Counter(
            "frcnn_problems", "Requests, and images of a batch, answered with a problem.", ["code"],
            registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge(
            "frcnn_images_in_flight", "Images accepted and not yet answered.", registry=self.registry
        )
        self.queued = Gauge("frcnn_images_queued", "Decoded images waiting for a device.", registry=self.registry)
        self.capacity = Gauge("frcnn_images_capacity", "Most images in flight.", registry=self.registry)
        self.model = Gauge("frcnn_model_info", "1 of what is served.", _MODEL_LABELS, registry=self.registry)
        self.device = Gauge("frcnn_device_info", "1 of each device.", _DEVICE_LABELS, registry=self.registry)
        ProcessCollector(registry=self.registry)
        self.ready = Gauge("frcnn_ready", "1 while the service takes requests.", registry=self.registry)

    def tell_what_is_served(self, model: str, weights: str, version: str) -> None:
        self.model.labels(model, weights, version).set(1)

    def tell_device(self, device: str, name: str, precision: str) -> None:
        self.device.labels(device, name, precision).set(1)

    def watch_memory(self, read: Callable[[], Mapping[str, Mapping[str, int]]]) -> None:
        """Have `read`, called at each scrape, tell the bytes of each device by their kind."""
        self.registry.register(_DeviceMemory(read))

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


class _DeviceMemory(Collector):
    def __init__(self, read: Callable[[], Mapping[str, Mapping[str, int]]]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("frcnn_device_memory_bytes", "Memory of a GPU.", labels=("device", "kind"))
        for device, kinds in self._read().items():
            for kind, size in kinds.items():
                family.add_metric((device, kind), size)
        if family.samples:
            yield family
