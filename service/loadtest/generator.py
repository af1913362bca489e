"""One process's share of the load."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from itertools import cycle

from service.loadtest.plan import Plan
from service.loadtest.samples import Recorder, Samples
from service.loadtest.transport import Transport

DROPPED = "not sent: too many in flight"
_PAUSE_AFTER_FAILURE_S = 0.1  # of a caller in closed loop, or a service that rejects would be asked as fast as it can
_SWITCH_INTERVAL_S = 0.0005  # Python's own is 5 ms, by which the pacer could come late


class Generator:
    """Sends a plan's requests and records how each ended. Runs once, on the event loop that calls `run`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.recorder = Recorder()
        self.in_flight = 0
        self._images = cycle(plan.order())
        self._tasks = asyncio.TaskGroup()  # the transport's; a bug in one of them ends the run
        self._transport = Transport(plan, self._tasks)
        self._to_come = 0  # of what is not in flight: 1 while arrivals go on, and each caller that pauses
        self._done = asyncio.Event()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Send nothing more and give up what is in flight, so that `run` returns what is recorded until now."""
        self._stopped.set()
        self._done.set()

    async def run(self, start: float) -> Samples:
        """Carry the plan out from `start` on, a time on the monotonic clock; return when all has been answered."""
        end = start + self.plan.warmup_s + self.plan.duration_s
        await asyncio.sleep(max(start - time.monotonic(), 0))
        async with self._tasks:
            if self.plan.rate is not None:
                self._to_come = 1
                self._pace(start)
            else:
                for _ in range(self.plan.concurrency or 0):
                    self._ask_again(end, "")
            await self._done.wait()
            if self._stopped.is_set():
                self._transport.cancel()
        await self._transport.close()
        return self.recorder.samples(start)

    def _pace(self, start: float) -> None:
        """Start the thread that says when to send.

        A thread's sleep ends within a tenth of a millisecond. The event loop's timers have a resolution of a whole one.
        """
        loop = asyncio.get_running_loop()

        def pace() -> None:
            for at in self.plan.arrivals():
                pause_s = start + at - time.monotonic()
                if self._stopped.wait(max(pause_s, 0)):
                    return
                loop.call_soon_threadsafe(self._arrive, start + at)
            loop.call_soon_threadsafe(self._last_has_arrived)

        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        threading.Thread(target=pace, daemon=True).start()

    def _arrive(self, intended: float) -> None:
        if self._stopped.is_set():
            return
        if self.in_flight >= self.plan.most_in_flight:
            now = time.monotonic()
            self.recorder.add(intended, now, now, DROPPED, b"")
        else:
            self._send(intended, lambda _: self._end_if_over())

    def _last_has_arrived(self) -> None:
        self._to_come = 0
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self._to_come == 0 and self.in_flight == 0:
            self._done.set()

    def _ask_again(self, end: float, failure: str) -> None:
        """A caller of the closed loop asks, once it has thought about a failure."""
        now = time.monotonic()
        if now >= end or self._stopped.is_set():
            self._end_if_over()
        elif failure:
            self._to_come += 1
            asyncio.get_running_loop().call_later(_PAUSE_AFTER_FAILURE_S, self._after_pause, end)
        else:
            self._send(now, lambda failure: self._ask_again(end, failure))

    def _after_pause(self, end: float) -> None:
        self._to_come -= 1
        self._ask_again(end, "")

    def _send(self, intended: float, then: Callable[[str], None]) -> None:
        def on_reply(failure: str, sent: float, done: float, timing: bytes) -> None:
            self.in_flight -= 1
            self.recorder.add(intended, sent, done, failure, timing)
            then(failure)

        self.in_flight += 1
        self._transport.send(next(self._images), on_reply)
