"""Admission control: limits on images, pixels and memory in flight, a share for each caller, and the waiting time.

A request that would be rejected is rejected before its body is read, so that a rejection costs next to nothing. Its
images are reserved when the body is complete: a slow sender must not keep others out.

Bodies have a budget of memory, and what is made of them has another one. In a common one, requests that hold a body and
wait for the memory of its pictures could wait for each other.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.batching.batch_queue import Priority
from service.batching.budgets import Budget, Permit
from service.batching.fairness import Caller
from service.errors import DeadlineError, QueueFullError, TooLateError
from service.telemetry.metrics import Metrics, RejectionReason

# Weight of the newest batch in the measured rate, which rises faster: the first batch of a shape can be slow.
_RISING, _FALLING = 0.5, 0.2
_LONGEST_RETRY_S = 60
# An answer expected later than at this share of the time that is left would too often come too late.
_SAFE_SHARE = 0.8


class Admission:
    """Decides which requests are accepted. Runs on the event loop; decoding threads only reserve pixels.

    Args:
        capacity: most images accepted and not yet answered.
        pixel_capacity: most pixels of the accepted images that are decoded or being decoded.
        byte_capacity: most bytes of the bodies of the requests in flight.
        memory_capacity: most bytes of memory: a quarter for bodies, the rest for what is made of them.
        devices: returns how many devices answer now.
        metrics: counts rejections.
    """

    def __init__(
        self,
        *,
        capacity: int,
        pixel_capacity: int,
        byte_capacity: int,
        memory_capacity: int,
        devices: Callable[[], int],
        metrics: Metrics,
    ) -> None:
        self.images = Budget(capacity)
        self.pixels = Budget(pixel_capacity)
        self.bytes = Budget(min(byte_capacity, max(memory_capacity // 4, 1)))
        self.memory = Budget(memory_capacity - memory_capacity // 4)
        self._devices = devices
        self._metrics = metrics
        metrics.in_flight.set_function(lambda: self.images.used)
        self._images_per_s: float | None = None  # of one device, smoothed

    def check(
        self,
        count: int = 1,
        *,
        priority: Priority = Priority.NORMAL,
        seconds_left: float = math.inf,
        caller: Caller = None,
        own: int = 0,
    ) -> None:
        """Check that `count` images could be reserved now, and answered in time.

        Args:
            count: images of the request.
            priority: their priority.
            seconds_left: until their deadline.
            caller: whose they are.
            own: images that the request has reserved already.

        Raises:
            QueueFullError: too many images are in flight, or too many of this caller; says when to try again, by the
                measured rate.
            DeadlineError: the deadline has passed.
            TooLateError: by the measured rate, the answer would come after the deadline; says when it would not.
        """
        used, capacity = self.images.used, self.images.capacity_for(priority)
        if used + count > capacity:
            raise self._full("queue-full", f"{used} images are being answered, of at most {capacity}", count, priority)
        if used > own and not self.images.leaves_room(count, caller):
            detail = (
                f"{used} images are being answered, of at most {capacity}, and a caller has to leave some to others"
            )
            raise self._full("queue-full", detail, count, priority)
        if seconds_left <= 0:
            raise DeadlineError("the deadline passed before the request was admitted")
        expected = self._expected_s(count, priority, caller, own)
        if expected > _SAFE_SHARE * seconds_left:
            self._metrics.count_rejected("too-late", count)
            raise TooLateError(
                f"the answer would take about {expected:.3g} s, and is wanted within {seconds_left:.3g} s",
                retry_after_s=_seconds(expected - _SAFE_SHARE * seconds_left),
            )

    def reserve_images(self, permit: Permit, count: int, *, seconds_left: float) -> None:
        """Reserve `count` images, all or none. Raises what `check` raises."""
        self.check(count, priority=permit.priority, seconds_left=seconds_left, caller=permit.caller, own=permit.units)
        permit.reserve(count)

    def reserve_bytes(self, permit: Permit, count: int) -> None:
        """Reserve bytes of a body as they arrive: an announced length alone must not keep others out.

        Raises:
            QueueFullError: the bodies in flight are too large together.
        """
        if not permit.reserve(count):
            detail = f"the requests in flight have {self.bytes.used:,} bytes, of at most {self.bytes.capacity:,}"
            raise self._full("bytes-full", detail)

    def pixels_full(self) -> QueueFullError:
        """The rejection of an image whose pixels could not be reserved."""
        detail = f"{self.pixels.used:,} pixels are being looked at, of at most {self.pixels.capacity:,}"
        return self._full("pixels-full", detail)

    def memory_full(self) -> QueueFullError:
        """The rejection of an image whose memory could not be reserved."""
        detail = (
            f"the requests in flight take {self.memory.used:,} bytes of memory, of at most {self.memory.capacity:,}"
        )
        return self._full("memory-full", detail)

    @contextmanager
    def release(self) -> Iterator[asyncio.Future[None]]:
        """A future that is done when pixels or memory are given back from now on."""
        with self.pixels.release() as released, self.memory.release(released):
            yield released

    def record_batch(self, images: int, seconds: float) -> None:
        """Update the measured rate after a batch."""
        rate = images / max(seconds, 1e-6)
        before = rate if self._images_per_s is None else self._images_per_s
        self._images_per_s = before + (_RISING if rate > before else _FALLING) * (rate - before)

    def _full(
        self, reason: RejectionReason, detail: str, count: int = 1, priority: Priority = Priority.NORMAL
    ) -> QueueFullError:
        self._metrics.count_rejected(reason, count)
        return QueueFullError(detail, retry_after_s=self._retry_after_s(count, priority))

    def _expected_s(self, count: int, priority: Priority, caller: Caller, own: int) -> float:
        """Seconds until `count` more images are answered, behind those of their priority and above.

        Callers take turns: of another caller's images, as many are ahead as this caller will have. 0 when nothing is
        ahead but the request's own: otherwise one slow answer could reject everything for good, as no other is
        measured.
        """
        if self._images_per_s is None:
            return 0.0
        held = {
            other: sum([images for level, images in levels.items() if level <= priority])
            for other, levels in self.images.held_by.items()
        }
        before = held.pop(caller, 0)
        ahead = before + sum([min(images, before + count) for images in held.values()])
        return (ahead + count) / self._rate(self._images_per_s) if ahead > own else 0.0

    def _retry_after_s(self, count: int, priority: Priority) -> int:
        """Seconds until enough of the images in flight are answered for `count` more to fit."""
        if self._images_per_s is None:
            return 1
        excess = self.images.used + count - self.images.capacity_for(priority)
        return _seconds(excess / self._rate(self._images_per_s))

    def _rate(self, images_per_s: float) -> float:
        return images_per_s * max(self._devices(), 1)


def _seconds(wait: float) -> int:
    return min(max(math.ceil(wait), 1), _LONGEST_RETRY_S)
