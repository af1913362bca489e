"""Who is let in: a quota in images and in pixels, and an estimate of when their answer would come.

All of it is decided before a body is read or an image decoded, so that saying no costs next to nothing.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
        devices: how many devices answer now.
        metrics: where to count.
    """

    def __init__(self, *, capacity: int, pixel_capacity: int, devices: Callable[[], int], metrics: Metrics) -> None:
        self._capacity = capacity
        self._pixel_capacity = pixel_capacity
        self._devices = devices
        self._metrics = metrics
        self._images = dict.fromkeys(Priority, 0)
        self._pixels = 0
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
        self._enter(count, priority)
        try:
            yield
        finally:
            self._enter(-count, priority)

    @contextmanager
    def room_for(self, pixels: int) -> Iterator[None]:
        """`room` for a picture whose size is known.

        Raises:
            QueueFullError: the pictures in flight are too large together.
        """
        with self.room() as take:
            take(pixels)
            yield

    @contextmanager
    def room(self) -> Iterator[Callable[[int], None]]:
        """Memory for one picture, from before it is decoded until it is answered. An image alone always has it.

        What is given takes so many pixels, at most once, and may be called in the thread that decodes. It raises
        QueueFullError where the pictures in flight are too large together.
        """
        held = 0
        over = False

        def take(pixels: int) -> None:
            nonlocal held
            with self._pixels_lock:
                full = over or (self._pixels > 0 and self._pixels + pixels > self._pixel_capacity)
                if not full:
                    held = pixels
                    self._pixels += pixels
            if full:
                self._metrics.rejected.labels("pixels-full").inc()
                raise QueueFullError(
                    f"{self._pixels:,} pixels are being looked at, of at most {self._pixel_capacity:,}",
                    retry_after_s=self._retry_after_s(1, Priority.NORMAL),
                )

        try:
            yield take
        finally:
            with self._pixels_lock:
                over = True  # the caller left before the thread came to it
                self._pixels -= held

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
