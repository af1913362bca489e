from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
import threading
import weakref
from functools import partial
from typing import Any

import pytest

from service.devices.device_thread import DeviceThread, ThreadEndedError, WorkTimeoutError
from service.threads import lower_priority
from tests.support.processes import niceness

pytestmark = pytest.mark.anyio


def kill(name: str) -> None:
    """As nothing in Python does: from outside, whatever the thread is at."""
    ident = next(thread.ident for thread in threading.enumerate() if thread.name == name)
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident or 0), ctypes.py_object(SystemExit)) == 1


def spin(begun: threading.Event) -> None:
    begun.set()
    while True:
        pass


async def ended(thread: DeviceThread) -> None:
    async with asyncio.timeout(20):
        while thread.alive:
            await asyncio.sleep(0.01)


async def test_it_works_in_one_thread_of_its_own_and_ends_when_retired() -> None:
    thread = DeviceThread("t-work")
    idents = [await thread.run(threading.get_ident, timeout_s=20) for _ in range(3)]
    assert len(set(idents)) == 1
    assert idents[0] != threading.get_ident()
    thread.retire()
    await ended(thread)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own elsewhere")
async def test_it_has_the_usual_priority_though_the_event_loop_has_not() -> None:
    async def asked() -> int:
        thread = DeviceThread("t-usual")
        try:
            return await thread.run(niceness, timeout_s=20)
        finally:
            thread.retire()

    def in_low_loop() -> tuple[int, int]:
        lower_priority(threading.current_thread(), 5)
        return niceness(), asyncio.run(asked())

    thread = DeviceThread("t-low")
    try:
        assert await thread.run(in_low_loop, timeout_s=20) == (min(niceness() + 5, 19), niceness())
    finally:
        thread.retire()


@pytest.mark.parametrize("error", [ValueError("x"), TimeoutError("the driver's own"), StopIteration()])
async def test_what_the_work_raises_is_raised(error: Exception) -> None:
    def work() -> None:
        raise error

    thread = DeviceThread("t-raise")
    with pytest.raises(RuntimeError if isinstance(error, StopIteration) else type(error)):
        await thread.run(work, timeout_s=20)
    assert await thread.run(lambda: 5, timeout_s=20) == 5
    thread.retire()


async def test_nothing_is_kept_of_work_that_failed() -> None:
    class Pictures:
        pass

    def work(pictures: Pictures) -> None:
        raise ValueError("broken")

    async def attempt() -> weakref.ref[Pictures]:
        pictures = Pictures()
        with pytest.raises(ValueError, match="broken"):
            await thread.run(partial(work, pictures), timeout_s=20)
        return weakref.ref(pictures)

    thread = DeviceThread("t-failed")
    gc.disable()
    try:
        seen = await attempt()
        await asyncio.sleep(0.1)
        assert seen() is None
    finally:
        gc.enable()
    thread.retire()


async def test_a_thread_that_is_killed_at_work_is_noticed_at_once() -> None:
    thread, begun = DeviceThread("t-killed"), threading.Event()
    running = asyncio.create_task(thread.run(lambda: spin(begun), timeout_s=1000))
    await asyncio.to_thread(begun.wait, 20)
    kill("t-killed")
    with pytest.raises(ThreadEndedError, match="SystemExit"):
        await asyncio.wait_for(running, 20)
    assert not thread.alive


@pytest.mark.no_cover  # under a tracer, Python 3.11 loops for ever while an exception waits for another thread
async def test_a_thread_that_is_killed_while_idle_says_so_when_it_is_used() -> None:
    thread = DeviceThread("t-idle")
    await thread.run(lambda: None, timeout_s=20)
    kill("t-idle")
    # It waits in C, where it is not to be interrupted: it dies of the work that it is given.
    with pytest.raises(ThreadEndedError):
        await thread.run(lambda: None, timeout_s=20)
    with pytest.raises(ThreadEndedError):
        await thread.run(lambda: None, timeout_s=20)


async def test_work_that_takes_too_long_is_given_up_and_can_still_be_seen_to_end() -> None:
    thread, gate = DeviceThread("t-slow"), threading.Event()
    with pytest.raises(WorkTimeoutError):
        await thread.run(gate.wait, timeout_s=0.05)
    thread.retire()
    assert thread.busy
    gate.set()
    await ended(thread)
    assert not thread.busy


async def test_an_outcome_that_comes_after_the_loop_has_closed_hurts_nobody() -> None:
    gate = threading.Event()
    made: list[Any] = []

    async def short() -> None:
        thread = DeviceThread("t-late")
        made.append(thread)
        with pytest.raises(WorkTimeoutError):
            await thread.run(gate.wait, timeout_s=0.01)
        thread.retire()

    await asyncio.to_thread(lambda: asyncio.run(short()))
    gate.set()
    await ended(made[0])
