"""When the next batch should follow the one that a device works on. Pure: no clock, no asyncio, no threads."""

from __future__ import annotations

import math
from collections import OrderedDict

from service.batching.batch_queue import Shape

# How long before the end of a batch the next one is launched, full or not: what the host needs to launch it.
_AHEAD_S = 0.002
_MOST_KINDS = 1024
_NEW_SHARE = 0.5  # weight of the newest batch of a kind


class Pace:
    """How long batches take, learnt from those before of the same padded shape and size."""

    def __init__(self) -> None:
        self._seconds: OrderedDict[tuple[Shape, int], float] = OrderedDict()

    def measure(self, shape: Shape, size: int, seconds: float) -> None:
        """Record how long a batch took."""
        before = self._seconds.pop((shape, size), seconds)
        self._seconds[shape, size] = before + _NEW_SHARE * (seconds - before)
        if len(self._seconds) > _MOST_KINDS:
            self._seconds.popitem(last=False)

    def follow_at(self, shape: Shape, size: int, started: float) -> float:
        """When a batch that is not full should follow one of this kind that started then.

        Until then requests gather. Simulations of an H100 showed what it costs to follow at once: batches that shrink,
        and a tenth fewer images a second with 64 callers. Of a kind that is not known it is infinitely late.
        """
        return started + self._seconds.get((shape, size), math.inf) - _AHEAD_S
