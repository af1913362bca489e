from __future__ import annotations

import asyncio
import sys
import threading
import time

import pytest

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


@pytest.mark.anyio
async def test_threads_take_shorter_turns_meanwhile() -> None:
    before = sys.getswitchinterval()
    assert await in_background(sys.getswitchinterval, name="load") < before
    assert sys.getswitchinterval() == before


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
