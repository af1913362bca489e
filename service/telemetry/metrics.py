"""What Prometheus sees. Every label has few values: routes as declared, never as requested."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Literal, TypeAlias, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_MODEL_LABELS = ("model", "weights", "weights_version", "version")
_DEVICE_LABELS = ("device", "name", "precision")
_RELOADS = ("ok", "failed", "no-memory")
RejectionReason: TypeAlias = Literal["queue-full", "too-late", "pixels-full", "bytes-full", "memory-full"]


class Metrics:
    """One service's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("frcnn_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self.request_seconds = Histograms(
            "frcnn_request_seconds", "From a request's head to the end of its answer.", _SECONDS, "route", self.registry
        )
        self.stage_seconds = Histograms(
            "frcnn_stage_seconds", "Time of one image in a stage.", _SECONDS, "stage", self.registry
        )
        self.batch_size = Histograms(
            "frcnn_batch_size", "Images in a batch.", (1, 2, 4, 8, 16, 32, 64, 128), None, self.registry
        ).labels()
        self._rejected = Counter(
            "frcnn_images_rejected", "Images rejected by admission control.", ["reason"], registry=self.registry
        )
        for reason in get_args(RejectionReason):
            # Told before the first: an increase is seen only from a value before it, and "none" is not "unknown".
            self._rejected.labels(reason)
        self.requests_now = 0  # being answered
        Gauge(
            "frcnn_requests_in_flight", "Requests being answered, of every route.", registry=self.registry
        ).set_function(lambda: self.requests_now)
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
        self.device_busy = Counter(
            "frcnn_device_busy_seconds", "Seconds that a device has worked on batches.", ["device"],
            registry=self.registry,
        )  # fmt: skip
        self.device = Gauge("frcnn_device_info", "1 of each device.", _DEVICE_LABELS, registry=self.registry)
        self.reloads = Counter("frcnn_reloads", "Reloads of the weights.", ["result"], registry=self.registry)
        for result in _RELOADS:
            self.reloads.labels(result)
        ProcessCollector(registry=self.registry)
        self.ready = Gauge("frcnn_ready", "1 while the service takes requests.", registry=self.registry)

    def count_rejected(self, reason: RejectionReason, images: int) -> None:
        """Count images that were rejected for lack of room or time."""
        self._rejected.labels(reason).inc(images)

    def set_model_info(self, model: str, weights: str, weights_version: str, version: str) -> None:
        """Tell what is served, in place of what was."""
        self.model.clear()
        self.model.labels(model, weights, weights_version, version).set(1)

    def set_device_info(self, devices: Sequence[tuple[str, str, str]]) -> None:
        """Tell the devices, in place of those that were: of each its address, name and precision."""
        self.device.clear()
        for labels in devices:
            self.device.labels(*labels).set(1)

    def watch_readings(self, read: Callable[[], Mapping[str, Mapping[str, float]]]) -> None:
        """Have `read`, called at each scrape, tell readings of each device by their name."""
        self.registry.register(_DeviceReadings(read))

    def watch_memory(self, read: Callable[[], Mapping[str, Mapping[str, int]]]) -> None:
        """Export the bytes of each device by their kind, from `read`, which each scrape calls."""
        self.registry.register(_DeviceMemory(read))

    def watch_batch_caps(self, read: Callable[[], Mapping[str, int]]) -> None:
        """Export the bound on a batch of each device that ran out of memory, from `read`, which each scrape calls."""
        self.registry.register(_BatchCaps(read))

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All of it, and its media type: Prometheus' text format, or OpenMetrics where an Accept header prefers it."""
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type


class Histogram:
    """Counts values by the least bound that they are not above. Lives on the event loop."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Histograms(Collector):
    """A histogram for each value of a label, as Prometheus' client has them, for one thread and in a tenth of its time.

    Args:
        name: of the metric.
        documentation: what it measures.
        bounds: of its buckets, ascending.
        label: its name; None for no label.
        registry: where to register it.
    """

    def __init__(
        self, name: str, documentation: str, bounds: Sequence[float], label: str | None, registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = bounds
        self._label_names = () if label is None else (label,)
        self._histograms: dict[tuple[str, ...], Histogram] = {}
        registry.register(self)

    def labels(self, *values: str) -> Histogram:
        """The histogram of a label's value, made when it is first asked for."""
        found = self._histograms.get(values)
        if found is None:
            found = self._histograms[values] = Histogram(self._bounds)
        return found

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._label_names)
        marks = [*map(floatToGoString, self._bounds), "+Inf"]
        for values, histogram in self._histograms.items():
            buckets = list(zip(marks, accumulate(histogram.counts), strict=True))
            family.add_metric(values, buckets, histogram.total)
        yield family


class _BatchCaps(Collector):
    def __init__(self, read: Callable[[], Mapping[str, int]]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "frcnn_device_batch_cap", "Most images at once, of a device that ran out of memory.", labels=("device",)
        )
        for device, most in self._read().items():
            family.add_metric((device,), most)
        if family.samples:
            yield family


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


_READINGS = {
    "utilization_ratio": "Share of the time in which a GPU computes, by its driver.",
    "power_watts": "Power that a GPU draws.",
    "temperature_celsius": "Temperature of a GPU.",
}


class _DeviceReadings(Collector):
    def __init__(self, read: Callable[[], Mapping[str, Mapping[str, float]]]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        readings = self._read()
        for name, documentation in _READINGS.items():
            family = GaugeMetricFamily(f"frcnn_device_{name}", documentation, labels=("device",))
            for device, told in readings.items():
                if name in told:
                    family.add_metric((device,), told[name])
            if family.samples:
                yield family
