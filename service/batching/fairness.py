"""Callers take turns: self-clocked fair queueing (Golestani, 1994).

Each piece of work has a cost and gets a turn when it enters: the caller's turn before, or the turn that is being served
if that is later, and the cost. Work goes by turns. So each caller gets the same share of the work, and a caller with
one cheap piece waits neither for the many pieces of another caller nor for the expensive ones of many callers. With one
caller the order is that of arrival.
"""

from __future__ import annotations

from collections.abc import Hashable

Caller = Hashable | None  # an address, a digest of a key; None where callers are not told apart
_MOST_IDLE = 1024  # callers that are remembered without work


class Turns:
    """Gives work its turn. Not for several threads at once."""

    def __init__(self) -> None:
        self._now = 0
        self._callers: dict[Caller, list[int]] = {}  # pieces that wait, turn of the last one

    def enter(self, caller: Caller, cost: int = 1) -> int:
        """The turn of a caller's next piece of work.

        Args:
            caller: whose it is.
            cost: of the piece, at least 1.
        """
        known = self._callers.get(caller)
        if known is None:
            if len(self._callers) >= _MOST_IDLE:
                self._forget_idle()
            known = self._callers[caller] = [0, 0]
        known[0] += 1
        known[1] = max(known[1], self._now) + cost
        return known[1]

    def leave(self, caller: Caller, served: int | None = None) -> None:
        """Count out a piece of work: it is begun in its turn, or given up (None)."""
        if served is not None:
            # One less: a new caller's piece of the least cost goes before the next piece of those just served.
            self._now = max(self._now, served - 1)
        self._callers[caller][0] -= 1

    def _forget_idle(self) -> None:
        self._callers = {caller: known for caller, known in self._callers.items() if known[0]}
