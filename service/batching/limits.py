"""How much the batcher takes on at once, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BatcherLimits:
    """How much at once, and how long.

    Args:
        max_batch_size: most images in a batch.
        max_queue_delay_s: how long an idle device waits for a batch to fill.
        priority_head_start_s: see `batch_queue`.
        hang_timeout_s: a device that works longer than this on one batch counts as failing.
        canary_interval_s: an idle device that does not answer is noticed within this; 0 for never.
    """

    max_batch_size: int
    max_queue_delay_s: float = 0.0
    priority_head_start_s: float = 10.0
    hang_timeout_s: float = 120.0
    canary_interval_s: float = 0.0
