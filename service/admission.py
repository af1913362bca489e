"""Who is let in: a quota in images and in pixels, and an estimate of when their answer would come.

Whoever would find no place is refused before the body is read, so that saying no costs next to nothing. The place
itself is taken when the body is there: else whoever sends slowly would hold it, and shut the door to others.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Self

from service.batch_queue import Priority
from service.errors import DeadlineError, QueueFullError, TooLateError
from service.metrics import Metrics

# Weight of the newest batch in the measured rate, which rises faster: the first batch of a shape can be slow.
_RISING, _FALLING = 0.5, 0.2
_LONGEST_RETRY_S = 60
# An answer expected later than at this share of the time that is left would too often come too late.
_SAFE_SHARE = 0.8


class Admission:
    """The door of the service. Lives on the event loop, but for the count of pixels, which decoding threads add to.

    Args:
        capacity: most images accepted and not yet answered.
        pixel_capacity: most pixels of those of them that are being, or have been, decoded.
        byte_capacity: most bytes of the bodies that they came in.
        devices: how many devices answer now.
        metrics: where to count.
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
        self._capacity = capacity
        self._pixel_capacity = pixel_capacity
        self._byte_capacity = byte_capacity
        self._devices = devices
        self._metrics = metrics
        metrics.in_flight.set_function(lambda: self.in_flight)
        self.in_flight = 0  # images accepted and not yet answered
        self._images = dict.fromkeys(Priority, 0)  # the same, by priority
        self._pixels = 0
        self._left = asyncio.Event()  # wakes those who wait, whenever a picture leaves
        self._bytes = 0
        self._pixels_lock = threading.Lock()
        self._images_per_s: float | None = None  # of one device, smoothed

    def capacity(self, priority: Priority) -> int:
        """Most images in flight for one of this priority to be let in: low ones leave a quarter to the others."""
        return self._capacity - (self._capacity // 4 if priority is Priority.LOW else 0)

    def places(self, count: int = 1, *, priority: Priority = Priority.NORMAL, seconds_left: float = math.inf) -> Places:
        """Room for `count` images, from before they are decoded until they are answered: all or none.

        The arguments, and what entering it raises, are those of `check`.
        """
        return Places(self, count, priority, seconds_left)

    def check(self, count: int = 1, *, priority: Priority = Priority.NORMAL, seconds_left: float = math.inf) -> None:
        """See that there would be `places` now.

        Args:
            count: of images.
            priority: theirs.
            seconds_left: until their answer is of no more use.

        Raises:
            QueueFullError: there is not that much room; says when to try again, by the measured rate.
            DeadlineError: it is of no more use now.
            TooLateError: by the measured rate, their answer would come too late; says when it would not.
        """
        if self.in_flight + count > self.capacity(priority):
            self._metrics.rejected.labels("queue-full").inc(count)
            raise QueueFullError(
                f"{self.in_flight} images are being answered, of at most {self.capacity(priority)}",
                retry_after_s=self._retry_after_s(count, priority),
            )
        if seconds_left <= 0:
            raise DeadlineError("the time for this request was over before it could be let in")
        expected = self._expected_s(count, priority)
        if expected > _SAFE_SHARE * seconds_left:
            self._metrics.rejected.labels("too-late").inc(count)
            raise TooLateError(
                f"the answer would take about {expected:.3g} s, and is wanted within {seconds_left:.3g} s",
                retry_after_s=_seconds(expected - _SAFE_SHARE * seconds_left),
            )

    def room(self) -> Room:
        """Memory for a picture, from before it is decoded until it is answered. An image alone always has it."""
        return Room(self)

    def room_for_body(self) -> BodyRoom:
        """Memory for a request's body, from its first byte until it is answered. A body alone always has it."""
        return BodyRoom(self)

    def measure(self, images: int, seconds: float) -> None:
        """A device has answered a batch."""
        rate = images / max(seconds, 1e-6)
        before = rate if self._images_per_s is None else self._images_per_s
        self._images_per_s = before + (_RISING if rate > before else _FALLING) * (rate - before)

    def _pixels_full(self) -> QueueFullError:
        self._metrics.rejected.labels("pixels-full").inc()
        return QueueFullError(
            f"{self._pixels:,} pixels are being looked at, of at most {self._pixel_capacity:,}",
            retry_after_s=self._retry_after_s(1, Priority.NORMAL),
        )

    def _bytes_full(self) -> QueueFullError:
        self._metrics.rejected.labels("bytes-full").inc()
        return QueueFullError(
            f"the requests in flight have {self._bytes:,} bytes, of at most {self._byte_capacity:,}",
            retry_after_s=self._retry_after_s(1, Priority.NORMAL),
        )

    def _enter(self, count: int, priority: Priority) -> None:
        self._images[priority] += count
        self.in_flight += count

    def _expected_s(self, count: int, priority: Priority) -> float:
        """Until `count` more images were answered, behind all of their priority and above.

        0 when nothing is ahead: else one slow answer could shut the door for good, as nobody would measure another.
        """
        if not self.in_flight or self._images_per_s is None:
            return 0.0
        ahead = sum([images for other, images in self._images.items() if other <= priority])
        if not ahead:
            return 0.0
        return (ahead + count) / self._rate(self._images_per_s)

    def _retry_after_s(self, count: int, priority: Priority) -> int:
        """Seconds until so many of the images in flight are answered that `count` more fit."""
        if self._images_per_s is None:
            return 1
        return _seconds((self.in_flight + count - self.capacity(priority)) / self._rate(self._images_per_s))

    def _rate(self, images_per_s: float) -> float:
        return images_per_s * max(self._devices(), 1)


class Places:
    """See `Admission.places`. A class, as the next two, as every request goes by: a generator takes thrice as long."""

    __slots__ = ("_admission", "_count", "_priority", "_seconds_left")

    def __init__(self, admission: Admission, count: int, priority: Priority, seconds_left: float) -> None:
        self._admission = admission
        self._count = count
        self._priority = priority
        self._seconds_left = seconds_left

    def __enter__(self) -> None:
        self._admission.check(self._count, priority=self._priority, seconds_left=self._seconds_left)
        self._admission._enter(self._count, self._priority)

    def __exit__(self, *_: object) -> None:
        self._admission._enter(-self._count, self._priority)


class Room:
    """See `Admission.room`. Memory is taken once, when the picture's size is known."""

    __slots__ = ("_admission", "_held", "_over")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._held = 0
        self._over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        admission = self._admission
        with admission._pixels_lock:
            self._over = True
            admission._pixels -= self._held
        admission._left.set()
        admission._left.clear()

    def take(self, pixels: int) -> None:
        """Take memory for so many. May be called in the thread that decodes.

        Raises:
            QueueFullError: the pictures in flight are too large together.
            CancelledError: the caller has left before the thread came to it: nobody is refused.
        """
        if not self._took(pixels):
            raise self._admission._pixels_full()

    async def wait_for(self, pixels: int) -> None:
        """The same, but wait as long as others leave, instead of being refused. On the event loop."""
        while not self._took(pixels):
            await self._admission._left.wait()

    def _took(self, pixels: int) -> bool:
        admission = self._admission
        with admission._pixels_lock:
            if self._over:
                raise CancelledError
            fits = not admission._pixels or admission._pixels + pixels <= admission._pixel_capacity
            if fits:
                admission._pixels += pixels
                self._held = pixels
            return fits


class BodyRoom:
    """See `Admission.room_for_body`."""

    __slots__ = ("_admission", "_held")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._held = 0

    def __enter__(self) -> Callable[[int], None]:
        """What takes memory for so many more bytes of it.

        It raises QueueFullError when the bodies in flight are too large together. (Not before: whoever only announces
        a large body would shut the door to others.)
        """
        return self._take

    def __exit__(self, *_: object) -> None:
        self._admission._bytes -= self._held

    def _take(self, size: int) -> None:
        admission = self._admission
        if admission._bytes > self._held and admission._bytes + size > admission._byte_capacity:
            raise admission._bytes_full()
        admission._bytes += size
        self._held += size


def _seconds(wait: float) -> int:
    return min(max(math.ceil(wait), 1), _LONGEST_RETRY_S)
