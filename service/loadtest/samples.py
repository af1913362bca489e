"""What was seen of each request, in columns: appending costs little, and makes no work for the garbage collector."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class Recorder:
    """Grows by one row for each request. Times are seconds on the machine's monotonic clock."""

    intended: array[float] = field(default_factory=lambda: array("d"))
    sent: array[float] = field(default_factory=lambda: array("d"))
    done: array[float] = field(default_factory=lambda: array("d"))
    failures: list[str] = field(default_factory=list)
    timings: list[bytes] = field(default_factory=list)

    def add(self, intended: float, sent: float, done: float, failure: str, timing: bytes) -> None:
        self.intended.append(intended)
        self.sent.append(sent)
        self.done.append(done)
        self.failures.append(failure)
        self.timings.append(timing)

    def samples(self, start: float) -> Samples:
        """All rows, with times from `start`."""
        return Samples(
            intended=np.array(self.intended) - start,
            sent=np.array(self.sent) - start,
            done=np.array(self.done) - start,
            failures=list(self.failures),
            timings=list(self.timings),
        )


@dataclass(frozen=True, slots=True)
class Samples:
    """N requests.

    Args:
        intended: `[N]` seconds from the start at which each was to be sent: in closed loop when its caller was free.
        sent: `[N]` when it was.
        done: `[N]` when its answer was there, or it failed.
        failures: what went wrong with each; empty if nothing did.
        timings: the Server-Timing header of each answer.
    """

    intended: Floats
    sent: Floats
    done: Floats
    failures: list[str]
    timings: list[bytes]

    def __len__(self) -> int:
        return len(self.failures)

    @property
    def latency(self) -> Floats:
        """`[N]` seconds from when it was to be sent, so that a request that had to wait for its turn shows it."""
        return self.done - self.intended

    @property
    def succeeded(self) -> npt.NDArray[np.bool_]:
        return np.array([not failure for failure in self.failures], dtype=np.bool_)

    def where(self, mask: npt.NDArray[np.bool_]) -> Samples:
        rows = np.flatnonzero(mask)
        return Samples(
            self.intended[rows],
            self.sent[rows],
            self.done[rows],
            [self.failures[row] for row in rows],
            [self.timings[row] for row in rows],
        )

    @staticmethod
    def merged(parts: Sequence[Samples]) -> Samples:
        return Samples(
            np.concatenate([part.intended for part in parts]),
            np.concatenate([part.sent for part in parts]),
            np.concatenate([part.done for part in parts]),
            [failure for part in parts for failure in part.failures],
            [timing for part in parts for timing in part.timings],
        )
