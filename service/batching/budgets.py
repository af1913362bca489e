"""Budgets: units of which so many are in use at once, with a share for each caller."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress

from service.batching.batch_queue import Priority
from service.batching.fairness import Caller

_NONE = dict.fromkeys(Priority, 0)
# A caller leaves so many of four units free as it holds.
_LEFT_FREE = 4


class Budget:
    """Units of which at most `capacity` are in use at once. A permit that is alone may exceed it.

    A caller's share depends on what is free: it may reserve more while, after that, a quarter of what it holds is left
    for others (dynamic thresholds, Choudhury and Hahne 1998). So one greedy caller gets four fifths of the budget, two
    get four ninths each, and another who holds little always finds something.

    Args:
        capacity: most units in use.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self.held_by: dict[Caller, dict[Priority, int]] = {}
        self._lock = threading.Lock()
        self._waiting: set[asyncio.Future[None]] = set()

    def permit(self, priority: Priority, caller: Caller = None) -> Permit:
        """A permit for no units yet."""
        return Permit(self, priority, caller)

    def leaves_room(self, units: int, caller: Caller) -> bool:
        """Whether a caller may hold `units` more, with regard to what is left for others."""
        held = 0 if caller is None else sum(self.held_by.get(caller, {}).values()) + units
        return self.capacity - self.used - units >= held // _LEFT_FREE

    def capacity_for(self, priority: Priority) -> int:
        """What a request of this priority may fill: a low one leaves a quarter to the others."""
        return self.capacity - (self.capacity // 4 if priority is Priority.LOW else 0)

    def take(self, units: int, permit: Permit) -> bool:
        """Give `units` more to a permit, if they fit. `Permit.reserve` calls this."""
        with self._lock:
            if permit.released:
                raise CancelledError
            fits = self.fits(units, permit)
            if fits:
                self._add(permit, units)
            return fits

    def fits(self, units: int, permit: Permit) -> bool:
        """Whether `take` would give them now."""
        return self.used == permit.units or self.leaves_room(units, permit.caller)

    def split(self, permit: Permit, units: int) -> Permit:
        """Move units to a permit of their own. `Permit.split` calls this."""
        with self._lock:
            if permit.released:
                raise CancelledError
            part = self.permit(permit.priority, permit.caller)
            self._add(permit, -units)
            self._add(part, units)
        return part

    def give_back(self, permit: Permit, units: int | None = None) -> None:
        """Take units from a permit, or all of them for ever. `Permit` calls this, in any thread."""
        with self._lock:
            permit.released = permit.released or units is None
            self._add(permit, -(permit.units if units is None else units))
            waiting = list(self._waiting)
        for one in waiting:
            with suppress(RuntimeError):  # its loop has been closed: the process is ending
                one.get_loop().call_soon_threadsafe(_wake, one)

    @contextmanager
    def release(self, released: asyncio.Future[None] | None = None) -> Iterator[asyncio.Future[None]]:
        """A future that is done when units are given back from now on: look for room after this, and then wait.

        Args:
            released: use this one.
        """
        released = released or asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.add(released)
        try:
            yield released
        finally:
            with self._lock:
                self._waiting.discard(released)

    def _add(self, permit: Permit, units: int) -> None:
        permit.units += units
        self.used += units
        if (held := self.held_by.get(permit.caller)) is None:
            held = self.held_by[permit.caller] = _NONE.copy()
        held[permit.priority] += units
        if not any(held.values()):
            del self.held_by[permit.caller]


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


class Permit:
    """Units of a budget that one request holds until it releases them. Any thread may use it."""

    __slots__ = ("_budget", "caller", "priority", "released", "units")

    def __init__(self, budget: Budget, priority: Priority, caller: Caller) -> None:
        self._budget = budget
        self.caller = caller
        self.priority = priority
        self.units = 0
        self.released = False

    def reserve(self, units: int) -> bool:
        """Reserve so many more, or none and return False.

        Raises:
            CancelledError: the permit has been released: its request has ended.
        """
        return self._budget.take(units, self)

    def fits(self, units: int) -> bool:
        """Whether `reserve` would succeed now."""
        return self._budget.fits(units, self)

    def shrink(self, units: int) -> None:
        """Give back what is more than so many units."""
        if self.units > units:
            self._budget.give_back(self, self.units - units)

    def split(self, units: int) -> Permit:
        """Move units to a permit of their own.

        Raises:
            CancelledError: the permit has been released.
        """
        return self._budget.split(self, units)

    def release(self) -> None:
        """Give all units back. A second call does nothing."""
        if not self.released:
            self._budget.give_back(self)


def release_with(thing: object, permit: Permit, loop: asyncio.AbstractEventLoop) -> None:
    """Release a permit on the event loop when a thing is freed: what is reserved is released when the memory is."""

    def release() -> None:  # runs wherever the last reference goes, perhaps within a budget's lock
        with suppress(RuntimeError):  # the loop has been closed: the process is ending
            if _running_loop() is loop:
                loop.call_soon(permit.release)  # it is awake
            else:
                loop.call_soon_threadsafe(permit.release)

    weakref.finalize(thing, release).atexit = False


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
