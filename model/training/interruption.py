"""Ctrl-C and SIGTERM during a run: noted, and obeyed where the run can stop without losing or breaking anything."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE = b"\nstopping as soon as the state is saved; again: at once\n"


class TrainingInterrupted(Exception):  # noqa: N818 - nothing went wrong
    """A signal ended a run, which has saved its state.

    Args:
        number: of the signal.
        iteration: that the saved state is of; 0 where nothing was trained yet, and nothing is saved.
    """

    def __init__(self, number: int, iteration: int) -> None:
        super().__init__(f"interrupted at iteration {iteration}")
        self.number, self.iteration = number, iteration


class Interruption:
    """The signal that came, if one did. The next one acts as it would have without us."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(self, number: int, _: FrameType | None) -> None:
        if self.number is not None:
            self.restore()
            signal.raise_signal(number)
            return
        self.number = number
        os.write(2, _NOTICE)  # a stream may be in the middle of a line, and takes no other from a signal's handler

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextmanager
def noted_signals() -> Iterator[Interruption]:
    """Note SIGINT and SIGTERM in place of what they do; in a thread other than the main one, nothing is changed."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    for number in _SIGNALS:
        signal.signal(number, interruption.note)
    try:
        yield interruption
    finally:
        interruption.restore()
