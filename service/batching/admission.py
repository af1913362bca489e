"""Admission control: limits on images, pixels and bytes in flight, and an estimate of the waiting time.

A request that would be rejected is rejected before its body is read, so that a rejection costs next to nothing. Its
images are reserved when the body is complete: a slow sender must not keep others out.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError

from service.batching.batch_queue import Priority
from service.errors import DeadlineError, QueueFullError, TooLateError
from service.telemetry.metrics import Metrics

# Weight of the newest batch in the measured rate, which rises faster: the first batch of a shape can be slow.
_RISING, _FALLING = 0.5, 0.2
_LONGEST_RETRY_S = 60
# An answer expected later than at this share of the time that is left would too often come too late.
_SAFE_SHARE = 0.8


class Budget:
    """Units of which at most `capacity` are in use at once. A permit that is alone may exceed it.

    Args:
        capacity: most units in use.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used_by = dict.fromkeys(Priority, 0)
        self._lock = threading.Lock()
        self._released = asyncio.Event()

    @property
    def used(self) -> int:
        return sum(self.used_by.values())

    def permit(self, priority: Priority) -> Permit:
        """A permit for no units yet."""
        return Permit(self, priority)

    def capacity_for(self, priority: Priority) -> int:
        """What a request of this priority may fill: a low one leaves a quarter to the others."""
        return self.capacity - (self.capacity // 4 if priority is Priority.LOW else 0)

    def take(self, units: int, permit: Permit) -> bool:
        """Give `units` more to a permit, if they fit. `Permit.reserve` calls this."""
        with self._lock:
            if permit.released:
                raise CancelledError
            used = self.used
            fits = used == permit.units or used + units <= self.capacity
            if fits:
                self.used_by[permit.priority] += units
                permit.units += units
            return fits

    def give_back(self, permit: Permit) -> None:
        """Take all units from a permit, for ever. `Permit.release` calls this."""
        with self._lock:
            permit.released = True
            self.used_by[permit.priority] -= permit.units
            permit.units = 0
        self._released.set()
        self._released.clear()

    async def wait_for_release(self) -> None:
        """Wait until a permit is released."""
        await self._released.wait()


class Permit:
    """Units of a budget that one request holds until it releases them."""

    __slots__ = ("_budget", "priority", "released", "units")

    def __init__(self, budget: Budget, priority: Priority) -> None:
        self._budget = budget
        self.priority = priority
        self.units = 0
        self.released = False

    def reserve(self, units: int) -> bool:
        """Reserve `units` more, or none and return False. Any thread may call this.

        Raises:
            CancelledError: the permit has been released: its request has ended.
        """
        return self._budget.take(units, self)

    async def reserve_when_free(self, units: int) -> None:
        """`reserve`, and wait until others have released enough."""
        while not self.reserve(units):
            await self._budget.wait_for_release()

    def release(self) -> None:
        """Give all units back. Only on the event loop; a second call does nothing."""
        if not self.released:
            self._budget.give_back(self)


class Admission:
    """Decides which requests are accepted. Runs on the event loop; decoding threads only reserve pixels.

    Args:
        capacity: most images accepted and not yet answered.
        pixel_capacity: most pixels of the accepted images that are decoded or being decoded.
        byte_capacity: most bytes of the bodies of the requests in flight.
        devices: returns how many devices answer now.
        metrics: counts rejections.
    """

    def __init__(
        self,
        *,
        capacity: int,
        pixel_capacity: int,
        byte_capacity: int,
        devices: Callable[[], int],
        metrics: Metrics,
    ) -> None:
        self.images = Budget(capacity)
        self.pixels = Budget(pixel_capacity)
        self.bytes = Budget(byte_capacity)
        self._devices = devices
        self._metrics = metrics
        metrics.in_flight.set_function(lambda: self.images.used)
        self._images_per_s: float | None = None  # of one device, smoothed

    def check(
        self, count: int = 1, *, priority: Priority = Priority.NORMAL, seconds_left: float = math.inf, own: int = 0
    ) -> None:
        """Check that `count` images could be reserved now, and answered in time.

        Args:
            count: images of the request.
            priority: their priority.
            seconds_left: until their deadline.
            own: images that the request has reserved already.

        Raises:
            QueueFullError: too many images are in flight; says when to try again, by the measured rate.
            DeadlineError: the deadline has passed.
            TooLateError: by the measured rate, the answer would come after the deadline; says when it would not.
        """
        used, capacity = self.images.used, self.images.capacity_for(priority)
        if used + count > capacity:
            raise self._full("queue-full", f"{used} images are being answered, of at most {capacity}", count, priority)
        if seconds_left <= 0:
            raise DeadlineError("the deadline passed before the request was admitted")
        expected = self._expected_s(count, priority, own)
        if expected > _SAFE_SHARE * seconds_left:
            self._metrics.rejected.labels("too-late").inc(count)
            raise TooLateError(
                f"the answer would take about {expected:.3g} s, and is wanted within {seconds_left:.3g} s",
                retry_after_s=_seconds(expected - _SAFE_SHARE * seconds_left),
            )

    def reserve_images(self, permit: Permit, count: int, *, seconds_left: float) -> None:
        """Reserve `count` images, all or none. Raises what `check` raises."""
        self.check(count, priority=permit.priority, seconds_left=seconds_left, own=permit.units)
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

    def record_batch(self, images: int, seconds: float) -> None:
        """Update the measured rate after a batch."""
        rate = images / max(seconds, 1e-6)
        before = rate if self._images_per_s is None else self._images_per_s
        self._images_per_s = before + (_RISING if rate > before else _FALLING) * (rate - before)

    def _full(self, reason: str, detail: str, count: int = 1, priority: Priority = Priority.NORMAL) -> QueueFullError:
        self._metrics.rejected.labels(reason).inc(count)
        return QueueFullError(detail, retry_after_s=self._retry_after_s(count, priority))

    def _expected_s(self, count: int, priority: Priority, own: int) -> float:
        """Seconds until `count` more images are answered, behind all of their priority and above.

        0 when nothing is ahead but the request's own: otherwise one slow answer could reject everything for good, as no
        other is measured.
        """
        if self._images_per_s is None:
            return 0.0
        ahead = sum([images for other, images in self.images.used_by.items() if other <= priority])
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
