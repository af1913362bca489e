"""Callers take turns: start-time fair queueing (Goyal, Vin and Cheng, 1996) of pieces that all count the same.

Each piece of work gets a round when it enters. A caller's pieces are in rounds that follow each other, and the first
one of a caller who has sent nothing recently is in the round that is being served. Work goes by rounds: a caller with
one piece waits for one piece of each other caller, however many those have. With one caller the order is that of
arrival.
"""

from __future__ import annotations

from collections.abc import Hashable

Caller = Hashable | None  # an address, a digest of a key; None where callers are not told apart
_MOST_IDLE = 1024  # callers that are remembered without work


class Rounds:
    """Gives work its round. Not for several threads at once."""

    def __init__(self) -> None:
        self._now = 0
        self._callers: dict[Caller, list[int]] = {}  # pieces that wait, round of the next one

    def enter(self, caller: Caller) -> int:
        """The round of a caller's next piece of work."""
        known = self._callers.get(caller)
        if known is None:
            if len(self._callers) >= _MOST_IDLE:
                self._forget_idle()
            known = self._callers[caller] = [0, 0]
        known[0] += 1
        this = max(known[1], self._now)
        known[1] = this + 1
        return this

    def leave(self, caller: Caller, served_in: int | None = None) -> None:
        """Count out a piece of work: it is begun in its round, or given up (None)."""
        if served_in is not None:
            self._now = max(self._now, served_in)
        self._callers[caller][0] -= 1

    def _forget_idle(self) -> None:
        self._callers = {caller: known for caller, known in self._callers.items() if known[0]}
