"""A batcher that runs, around detectors of a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from service.batching.batcher import Batcher, BatcherLimits
from service.devices.detector import Detector
from service.telemetry.metrics import Metrics
from tests.support.fakes import FakeDetector


@asynccontextmanager
async def running(
    *detectors: Detector,
    max_batch_size: int = 8,
    delay: float = 0.0,
    hang: float = 60.0,
    canary: float = 0.0,
    reload: Callable[[str], Detector] | None = None,
    on_failure: Callable[[bool], None] = lambda _: None,
) -> AsyncIterator[Batcher]:
    """Start a batcher, and stop it at the end, when the gates of fake detectors are opened.

    Args:
        max_batch_size, delay, hang, canary: see `BatcherLimits`.
        reload: by default gives the detector of the device again.
        on_failure: see `Batcher`.
    """
    batcher = Batcher(
        detectors,
        limits=BatcherLimits(
            max_batch_size=max_batch_size, max_queue_delay_s=delay, hang_timeout_s=hang, canary_interval_s=canary
        ),
        reload=reload or (lambda name: next(one for one in detectors if one.device == name)),
        on_failure=on_failure,
        on_batch=lambda _images, _seconds: None,
        metrics=Metrics(),
    )
    batcher.start()
    try:
        yield batcher
    finally:
        for detector in detectors:
            if isinstance(detector, FakeDetector):
                detector.gate.set()
        await batcher.stop()
