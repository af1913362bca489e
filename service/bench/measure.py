"""Serving against the bare model, against a service without batching, and on its own; all within one run.

On a busy machine only what was measured in turns can be compared, so every round measures each in turn, and ratios are
medians of the rounds' own ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from service.bench.pictures import jpeg
from service.bench.processes import running
from service.devices.detector import Detector
from service.devices.loading import load_detectors
from service.images.pictures import decode
from service.loadtest.fleet import run_plan
from service.loadtest.plan import Plan, Target
from service.loadtest.summary import Document, summarise
from service.settings import ModelName, Settings

_CALLERS = 16
_SHAPES, _SHAPE_CALLERS, _SHAPE_BATCH, _SHAPE_BATCH_S = 30, 64, 16, 0.05


class BenchError(RuntimeError):
    """A server rejected what it was measured with, so its figures mean nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceResult:
    """Medians of the rounds; rates are images a second."""

    precision: str
    batch_size: int
    bare_per_s: float
    ours_per_s: float
    ours_p99_ms: float | None
    share_of_bare: float
    plain_per_s: float
    plain_p99_ms: float | None
    times_plain: float
    nothing_per_s: float  # a model that does nothing: what serving itself costs
    nothing_p99_ms: float | None
    shapes: int
    shapes_batch_size: float  # mean of what an image of a mix of shapes shares a batch with
    rounds: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def bench_service(
    *,
    model: ModelName,
    device: str,
    precision: str,
    rounds: int,
    seconds: float,
    advance: Callable[[], None] = lambda: None,
) -> ServiceResult:
    """Measure.

    Args:
        model: of every server.
        device: of every model.
        precision: of ours; torchvision's has float32.
        rounds: how often each is measured.
        seconds: how long, each time.
        advance: called after each round, the first of them preparing.

    Raises:
        BenchError, ServerLostError: a server cannot be measured.
        DetectorError: the device cannot compute in that precision.
    """
    settings = Settings.model_validate(
        {"weights": "random", "model": model, "device": device, "precision": precision, "calibrate_first": True}
    )
    detector = load_detectors(settings)[0]
    done = _rounds(detector, model=model, rounds=rounds, seconds=seconds, advance=advance)
    rates, others = _rates(done.ours), _rates(done.plain)
    return ServiceResult(
        precision=detector.precision,
        batch_size=detector.best_batch_size,
        bare_per_s=statistics.median(done.bare),
        ours_per_s=statistics.median(rates),
        ours_p99_ms=_median_p99_ms(done.ours),
        share_of_bare=statistics.median(rate / alone for rate, alone in zip(rates, done.bare, strict=True)),
        plain_per_s=statistics.median(others),
        plain_p99_ms=_median_p99_ms(done.plain),
        times_plain=statistics.median(rate / other for rate, other in zip(rates, others, strict=True)),
        nothing_per_s=statistics.median(_rates(done.nothing)),
        nothing_p99_ms=_median_p99_ms(done.nothing),
        shapes=_SHAPES,
        shapes_batch_size=mixed_shapes(seconds),
        rounds=rounds,
    )


@dataclass(frozen=True, slots=True)
class _Rounds:
    """What each round measured."""

    bare: list[float] = field(default_factory=list)  # images a second
    ours: list[Document] = field(default_factory=list)
    plain: list[Document] = field(default_factory=list)
    nothing: list[Document] = field(default_factory=list)


def _rounds(
    detector: Detector, *, model: ModelName, rounds: int, seconds: float, advance: Callable[[], None]
) -> _Rounds:
    photograph = [jpeg((480, 640))]
    callers = max(4, 4 * detector.best_batch_size)
    done = _Rounds()
    with (
        running(
            "ours",
            model=model,
            device=detector.device,
            precision=detector.precision,
            backend=detector.backend,
            batch_size=detector.best_batch_size,
        ) as ours_url,
        running("plain", model=model, device=detector.device) as plain_url,
        running("stand-in", batch_size=64) as nothing_url,
    ):
        advance()
        for _ in range(rounds):
            done.bare.append(bare_rate(detector, photograph[0], seconds))
            done.ours.append(load(ours_url, photograph, callers, seconds))
            done.plain.append(load(plain_url, photograph, 2, seconds))  # one works while the other waits
            done.nothing.append(load(nothing_url, photograph, _CALLERS, min(seconds, 5)))
            advance()
    return done


def _rates(runs: Sequence[Document]) -> list[float]:
    return [run["throughput_per_s"] for run in runs]


def mixed_shapes(seconds: float) -> float:
    """The mean batch in which an image of many shapes is answered, by a device that takes 50 ms for any batch."""
    # From upright to wide, as cameras and crops have them.
    ratios = np.linspace(0.5, 2, _SHAPES)
    images = [jpeg((round(400 / ratio**0.5), round(400 * ratio**0.5))) for ratio in ratios]
    with running("stand-in", batch_size=_SHAPE_BATCH, batch_s=_SHAPE_BATCH_S) as url:
        sizes: dict[str, int] = load(url, images, _SHAPE_CALLERS, min(seconds, 10))["batch_sizes"]
    return sum(int(size) * count for size, count in sizes.items()) / sum(sizes.values())


def bare_rate(detector: Detector, image: bytes, seconds: float) -> float:
    """Images a second of the detector alone, from decoded pixels, as many at a time as suit it best."""
    batch = [decode(image, max_pixels=1 << 30).pixels] * detector.best_batch_size
    detector.detect(batch)
    started, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        detector.detect(batch)
        done += len(batch)
    return done / elapsed


def load(url: str, images: Sequence[bytes], callers: int, seconds: float) -> Document:
    """The figures of `callers` callers, who send again as soon as they have an answer.

    Raises:
        BenchError: a request failed.
    """
    plan = Plan(
        target=Target.parse(url), images=tuple(images), concurrency=callers, duration_s=seconds, warmup_s=seconds / 4
    )
    run = summarise(run_plan(plan))
    if not run["requests"]:
        raise BenchError(f"{url} gave no answer within {seconds:g} s; measure longer (--seconds)")
    if run["failed"]:
        raise BenchError(f"{run['failed']} of {run['requests']} requests to {url} failed: {run['failures']}")
    return run


def _median_p99_ms(runs: Sequence[Document]) -> float | None:
    """The median p99; None where a run had too few requests for one."""
    told = [run["latency_ms"]["p99"] for run in runs]
    return None if None in told else float(statistics.median(told))
