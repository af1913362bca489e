from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from service.devices import background
from service.devices.background import in_background


@pytest.mark.anyio
async def test_work_has_a_thread_of_its_own_and_the_loop_goes_on() -> None:
    proceed = threading.Event()

    def work() -> str:
        assert proceed.wait(20)
        return threading.current_thread().name

    task = asyncio.create_task(in_background(work, name="reload"))
    await asyncio.sleep(0.01)  # it would never come back if the loop did the work
    assert not task.done()
    proceed.set()
    assert await task == "reload"


@pytest.mark.anyio
async def test_what_the_work_raises_is_raised_where_it_is_waited_for() -> None:
    def work() -> None:
        raise LookupError("no weights")

    with pytest.raises(LookupError, match="no weights"):
        await in_background(work, name="load")


@pytest.fixture
def usual_interval(monkeypatch: pytest.MonkeyPatch) -> Iterator[float]:
    """The interval of a process without background work, though a loader of another test may still hang."""
    before = sys.getswitchinterval()
    monkeypatch.setattr(background, "_short_turns", background._ShortTurns())
    sys.setswitchinterval(0.005)
    yield sys.getswitchinterval()
    sys.setswitchinterval(before)


@pytest.mark.anyio
async def test_threads_take_shorter_turns_meanwhile(usual_interval: float) -> None:
    assert await in_background(sys.getswitchinterval, name="load") < usual_interval
    assert sys.getswitchinterval() == usual_interval


@pytest.mark.anyio
async def test_turns_are_the_usual_ones_when_the_last_of_two_works_is_over(usual_interval: float) -> None:
    begun, proceed = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        assert proceed.wait(20)

    def second() -> None:
        proceed.set()
        time.sleep(0.05)  # the first one ends meanwhile

    running = asyncio.create_task(in_background(first, name="load"))
    assert await asyncio.to_thread(begun.wait, 20)
    await in_background(second, name="reload")
    await running
    for thread in threading.enumerate():
        if thread.name in {"load", "reload"}:
            thread.join(20)
    assert sys.getswitchinterval() == usual_interval


def test_work_that_ends_after_the_loop_harms_nothing() -> None:
    proceed, over = threading.Event(), threading.Event()

    def work() -> None:
        assert proceed.wait(20)
        over.set()

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(in_background(work, name="late"), 0.01)

    asyncio.run(leave())
    proceed.set()
    assert over.wait(20)
    thread = next((one for one in threading.enumerate() if one.name == "late"), None)
    if thread is not None:
        thread.join(20)
    time.sleep(0)  # an exception of the thread would be a warning, and so an error
