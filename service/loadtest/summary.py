"""From samples to figures: a document of plain JSON values, which the display and the report read."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from service.client.timing import Timing
from service.loadtest.fleet import Measured
from service.loadtest.generator import DROPPED
from service.loadtest.plan import Plan
from service.loadtest.samples import Floats, Samples

PERCENTILES = (50, 75, 90, 95, 99, 99.9)
_BUSY = 0.8
_LATE_S = 0.005  # a generator this late is part of what it measures

Document = dict[str, Any]
Spread = dict[str, float | None]


def summarise(measured: Measured) -> Document:
    """The figures of one run.

    Latencies are those of the requests that were to be sent in the measured time and succeeded, whenever their answers
    came. Throughput counts the answers that came in the measured time.
    """
    plan = measured.plan
    everything = measured.samples
    samples = measured_part(measured)
    succeeded = samples.where(samples.succeeded)
    in_time = _in_time(measured)
    late = samples.sent - samples.intended
    document: Document = {
        "plan": plan_json(plan, measured.workers),
        "requests": len(samples),
        "succeeded": len(succeeded),
        "failed": len(samples) - len(succeeded),
        "failures": dict(Counter(failure for failure in samples.failures if failure).most_common()),
        "offered_per_s": round(len(samples) / plan.duration_s, 3),
        "throughput_per_s": round(int(in_time.sum()) / plan.duration_s, 3),
        "latency_ms": _spread_ms(succeeded.latency),
        "curve_ms": _curve_ms(succeeded.latency),
        "histogram_ms": _histogram_ms(succeeded.latency),
        **_server_timings(succeeded),
        "timeline": _timeline(samples, everything.done[in_time], plan.warmup_s, plan.duration_s),
        "generator": {
            "busy": round(measured.busy, 3),
            "late_ms": _spread_ms(late),
            "dropped": samples.failures.count(DROPPED),
        },
    }
    document["warnings"] = _warnings(document, measured)
    return document


def is_busy(measured: Measured) -> bool:
    """Whether the processes that made the load had little time to spare, so that requests waited there."""
    return measured.busy > _BUSY


def answered_in_time(measured: Measured) -> int:
    """How many requests succeeded within the measured time."""
    return int(_in_time(measured).sum())


def _in_time(measured: Measured) -> npt.NDArray[np.bool_]:
    plan, everything = measured.plan, measured.samples
    begin, end = plan.warmup_s, plan.warmup_s + plan.duration_s
    return everything.succeeded & (everything.done >= begin) & (everything.done < end)


def measured_part(measured: Measured) -> Samples:
    """The requests that were to be sent after the warm-up."""
    plan, everything = measured.plan, measured.samples
    after_warmup = everything.intended >= plan.warmup_s
    return everything.where(after_warmup & (everything.intended < plan.warmup_s + plan.duration_s))


def plan_json(plan: Plan, workers: int) -> Document:
    return {
        "url": plan.target.url,
        "path": plan.target.path,
        "loop": "closed" if plan.rate is None else "open",
        "rate_per_s": plan.rate,
        "concurrency": plan.concurrency,
        "duration_s": plan.duration_s,
        "warmup_s": plan.warmup_s,
        "timeout_s": plan.timeout_s,
        "images": len(plan.images),
        "mean_image_bytes": round(sum(map(len, plan.images)) / len(plan.images)),
        "workers": workers,
        "seed": plan.seed,
    }


def quantile(values: Floats, share: float) -> float:
    """The smallest value that at least this share of the values does not exceed: one that really occurred."""
    return float(np.quantile(values, share, method="inverted_cdf"))


def is_enough(count: int, share: float) -> bool:
    """Whether a number of requests is enough for the quantile of a share: one of them at least lies beyond it."""
    return count * (1 - share) > 1 - 1e-9


def _spread_ms(seconds: Floats) -> Spread | None:
    """Mean, extremes and percentiles; None for a percentile that needs more values."""
    if not len(seconds):
        return None
    spread: Spread = {"mean": _ms(seconds.mean()), "min": _ms(seconds.min())}
    for percentile in PERCENTILES:
        share = percentile / 100
        spread[f"p{percentile:g}"] = _ms(quantile(seconds, share)) if is_enough(len(seconds), share) else None
    return spread | {"max": _ms(seconds.max())}


def _curve_ms(latency: Floats) -> list[tuple[float, float]]:
    """(share of requests, milliseconds), denser towards 1, as far as the requests suffice."""
    if not len(latency):
        return []
    shares = 1 - np.logspace(0, -np.log10(max(len(latency), 10)), 60)
    return [(round(float(share), 6), _ms(quantile(latency, float(share)))) for share in shares]


def _histogram_ms(latency: Floats) -> Document:
    """Counts between `edges`: bins of one width up to the 99.5th percentile; what is slower is counted in `over`."""
    if not len(latency):
        return {"edges": [], "counts": [], "over": 0}
    top = quantile(latency, 0.995)
    low = float(latency.min())
    counts, edges = np.histogram(latency, bins=40, range=(low, top if top > low else low + 1e-3))
    return {"edges": [_ms(edge) for edge in edges], "counts": counts.tolist(), "over": int((latency > top).sum())}


def _server_timings(succeeded: Samples) -> Document:
    """Each stage's times, and `elsewhere`: what the service's stages do not explain."""
    timings = [Timing.parse(header.decode("latin-1")) for header in succeeded.timings]
    stages: dict[str, list[float]] = {}
    for timing in timings:
        for stage, milliseconds in timing.stages_ms.items():
            stages.setdefault(stage, []).append(milliseconds / 1000)
    spreads = {stage: _spread_ms(np.array(values)) for stage, values in stages.items()}
    if spreads:
        told = np.array([sum(timing.stages_ms.values()) for timing in timings]) / 1000
        spreads["elsewhere"] = _spread_ms(np.maximum(succeeded.latency - told, 0))
    sizes = Counter(timing.batch_size for timing in timings if timing.batch_size is not None)
    return {"stages_ms": spreads, "batch_sizes": {str(size): sizes[size] for size in sorted(sizes)}}


def _timeline(samples: Samples, answered: Floats, begin: float, duration_s: float) -> list[Document]:
    """A row for each stretch of the measured time: latencies by when requests were to be sent, answers by when they
    came."""
    stretches = int(np.clip(duration_s, 1, 120))
    edges = begin + np.linspace(0, duration_s, stretches + 1)
    answers, _ = np.histogram(answered, bins=edges)
    stretch_of = np.clip(np.searchsorted(edges, samples.intended, "right") - 1, 0, stretches - 1)
    succeeded, latency = samples.succeeded, samples.latency
    rows = []
    for i in range(stretches):
        mine = stretch_of == i
        latencies = latency[mine & succeeded]
        rows.append(
            {
                "at_s": round(float(edges[i] - begin), 3),
                "throughput_per_s": round(float(answers[i] / (edges[i + 1] - edges[i])), 3),
                "failed": int((mine & ~succeeded).sum()),
                "p50_ms": _ms(quantile(latencies, 0.5)) if len(latencies) else None,
                "max_ms": _ms(latencies.max()) if len(latencies) else None,
            }
        )
    return rows


def _warnings(document: Document, measured: Measured) -> list[str]:
    """What keeps the figures from meaning what they seem to."""
    found = []
    generator = document["generator"]
    if measured.interrupted:
        found.append(f"interrupted: these figures are of the {measured.plan.duration_s:.1f} s that were measured")
    if not document["requests"]:
        found.append("no request was sent in the measured time; measure longer")
    untold = [name for name, value in (document["latency_ms"] or {}).items() if value is None]
    if "p99" in untold:
        found.append(
            f"{document['succeeded']} requests are too few to tell {', '.join(untold)}: p99 needs 100; measure longer"
        )
    if is_busy(measured):
        found.append(
            f"the load generator used {measured.busy:.0%} of a processor core: the latencies are partly its own, and "
            "more --workers will show more of the service"
        )
    if generator["late_ms"] and (generator["late_ms"]["p99"] or 0) > _LATE_S * 1000:
        found.append(
            f"one request in a hundred was sent {generator['late_ms']['p99']:.0f} ms late or later: this machine is "
            "busy, or connections were slow to open"
        )
    if generator["dropped"]:
        found.append(
            f"{generator['dropped']} requests were never sent, as too many were in flight: the service cannot keep up"
        )
    if document["failed"]:
        found.append(f"{document['failed']} requests failed; the latencies are those of the others")
    return found


def _ms(seconds: float) -> float:
    return round(float(seconds) * 1000, 3)
