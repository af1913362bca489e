"""Which CUDA graphs to make, and when. Pure: no device, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable

from model.structures import SizeHW

Key = tuple[SizeHW, int]  # padded shape, pictures


class CapturePolicy:
    """Decides when a graph is worth the time that it takes to make.

    Capturing one takes a fraction of a second, in which the device answers no caller. So it is captured while the
    device is idle, or once its shape and size have come so often that the pause is worth it.

    Args:
        usual: what to have before it comes, most usual first.
        often: how many times a shape and size have to come before a graph is made while others wait; 1 for at once.
    """

    def __init__(self, usual: Iterable[Key] = (), *, often: int = 1) -> None:
        self._usual = tuple(usual)
        self._often = often
        self._came: Counter[Key] = Counter()  # bounded: there are so many padded shapes, and few sizes
        self._rejected: set[Key] = set()

    def came(self, key: Key) -> bool:
        """Count a batch that has no graph. Returns whether to make one now."""
        self._came[key] += 1
        return self._came[key] >= self._often and key not in self._rejected

    def reject(self, key: Key) -> None:
        """No graph can be made for it."""
        self._rejected.add(key)

    def next(self, made: Container[Key], *, room: bool) -> Key | None:
        """What to make while the device is idle; None if there is nothing.

        What has come goes before what is usual, the most frequent first.

        Args:
            made: what has a graph.
            room: whether another graph may be kept without one in use being dropped.
        """
        if not room:
            return None
        wanted = [key for key, _ in self._came.most_common()] + list(self._usual)
        return next((key for key in wanted if key not in made and key not in self._rejected), None)
