"""Who is let in: a quota in images and in pixels, and an estimate of when their answer would come.

Whoever would find no place is refused before the body is read, so that saying no costs next to nothing. The place
itself is taken when the body is there: else whoever sends slowly would hold it, and shut the door to others.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager, contextmanager

from service.batch_queue import Priority
from service.errors import QueueFullError, TooLateError
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
        self._images = dict.fromkeys(Priority, 0)
        self._pixels = 0
        self._left = asyncio.Event()  # set when the next picture has left
        self._bytes = 0
        self._pixels_lock = threading.Lock()
        self._images_per_s: float | None = None  # of one device, smoothed

    @property
    def in_flight(self) -> int:
        """Images accepted and not yet answered."""
        return sum(self._images.values())

    def capacity(self, priority: Priority) -> int:
        """Most images in flight for one of this priority to be let in: low ones leave a quarter to the others."""
        return self._capacity - (self._capacity // 4 if priority is Priority.LOW else 0)

    @contextmanager
    def places(
        self, count: int = 1, *, priority: Priority = Priority.NORMAL, seconds_left: float = math.inf
    ) -> Iterator[None]:
        """Room for `count` images, from before they are decoded until they are answered: all or none.

        The arguments, and what is raised, are those of `check`.
        """
        self.check(count, priority=priority, seconds_left=seconds_left)
        self._enter(count, priority)
        try:
            yield
        finally:
            self._enter(-count, priority)

    def check(self, count: int = 1, *, priority: Priority = Priority.NORMAL, seconds_left: float = math.inf) -> None:
        """See that there would be `places` now.

        Args:
            count: of images.
            priority: theirs.
            seconds_left: until their answer is of no more use.

        Raises:
            QueueFullError: there is not that much room; says when to try again, by the measured rate.
            TooLateError: by the measured rate, their answer would come too late; says when it would not.
        """
        if self.in_flight + count > self.capacity(priority):
            self._metrics.rejected.labels("queue-full").inc(count)
            raise QueueFullError(
                f"{self.in_flight} images are being answered, of at most {self.capacity(priority)}",
                retry_after_s=self._retry_after_s(count, priority),
            )
        expected = self._expected_s(count, priority)
        if expected > _SAFE_SHARE * seconds_left:
            self._metrics.rejected.labels("too-late").inc(count)
            raise TooLateError(
                f"the answer would take about {expected:.3g} s, and is wanted within {max(seconds_left, 0):.3g} s",
                retry_after_s=_seconds(expected - _SAFE_SHARE * seconds_left),
            )

    @asynccontextmanager
    async def room_for(self, pixels: int, *, patient: bool = False) -> AsyncIterator[None]:
        """Memory for a picture, from before it is decoded until it is answered. An image alone always has it.

        Args:
            pixels: how many it has.
            patient: wait for it, as long as others leave, instead of being refused.

        Raises:
            QueueFullError: the pictures in flight are too large together.
        """
        while not self._take(pixels):
            if not patient:
                raise self._pixels_full()
            await self._left.wait()
        try:
            yield
        finally:
            self._give_back(pixels)

    @contextmanager
    def room(self) -> Iterator[Callable[[int], None]]:
        """The same for a picture whose size is not known yet.

        Yields:
            What takes so many pixels, at most once, and may be called in the thread that decodes. It raises
            QueueFullError where the pictures in flight are too large together, and CancelledError where the caller has
            left: nobody is refused then.
        """
        held = 0
        over = False
        mine = threading.Lock()

        def take(pixels: int) -> None:
            nonlocal held
            with mine:  # the caller may have left before the thread comes to it
                if over:
                    raise CancelledError
                if self._take(pixels):
                    held = pixels
                    return
            raise self._pixels_full()

        try:
            yield take
        finally:
            with mine:
                over = True
            self._give_back(held)

    def _take(self, pixels: int) -> bool:
        with self._pixels_lock:
            fits = not self._pixels or self._pixels + pixels <= self._pixel_capacity
            if fits:
                self._pixels += pixels
            return fits

    def _give_back(self, pixels: int) -> None:
        """On the event loop."""
        with self._pixels_lock:
            self._pixels -= pixels
        self._left.set()
        self._left = asyncio.Event()

    def _pixels_full(self) -> QueueFullError:
        self._metrics.rejected.labels("pixels-full").inc()
        return QueueFullError(
            f"{self._pixels:,} pixels are being looked at, of at most {self._pixel_capacity:,}",
            retry_after_s=self._retry_after_s(1, Priority.NORMAL),
        )

    @contextmanager
    def room_for_body(self) -> Iterator[Callable[[int], None]]:
        """Memory for a request's body, from its first byte until it is answered. A body alone always has it.

        Yields:
            What takes memory for so many more bytes of it. It raises QueueFullError when the bodies in flight are too
            large together. (Not before: whoever only announces a large body would shut the door to others.)
        """
        held = 0

        def take(size: int) -> None:
            nonlocal held
            if self._bytes > held and self._bytes + size > self._byte_capacity:
                self._metrics.rejected.labels("bytes-full").inc()
                raise QueueFullError(
                    f"the requests in flight have {self._bytes:,} bytes, of at most {self._byte_capacity:,}",
                    retry_after_s=self._retry_after_s(1, Priority.NORMAL),
                )
            self._bytes += size
            held += size

        try:
            yield take
        finally:
            self._bytes -= held

    def measure(self, images: int, seconds: float) -> None:
        """A device has answered a batch."""
        rate = images / max(seconds, 1e-6)
        before = rate if self._images_per_s is None else self._images_per_s
        self._images_per_s = before + (_RISING if rate > before else _FALLING) * (rate - before)

    def _enter(self, count: int, priority: Priority) -> None:
        self._images[priority] += count
        self._metrics.in_flight.set(self.in_flight)

    def _expected_s(self, count: int, priority: Priority) -> float:
        """Until `count` more images were answered, behind all of their priority and above.

        0 when nothing is ahead: else one slow answer could shut the door for good, as nobody would measure another.
        """
        ahead = sum(images for other, images in self._images.items() if other <= priority)
        if not ahead or self._images_per_s is None:
            return 0.0
        return (ahead + count) / self._rate(self._images_per_s)

    def _retry_after_s(self, count: int, priority: Priority) -> int:
        """Seconds until so many of the images in flight are answered that `count` more fit."""
        if self._images_per_s is None:
            return 1
        return _seconds((self.in_flight + count - self.capacity(priority)) / self._rate(self._images_per_s))

    def _rate(self, images_per_s: float) -> float:
        return images_per_s * max(self._devices(), 1)


def _seconds(wait: float) -> int:
    return min(max(math.ceil(wait), 1), _LONGEST_RETRY_S)
