from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from service.batching.decode_threads import USUAL_COST, Continuation, DecodeThreads
from service.batching.thread_work import run_in_threads

pytestmark = pytest.mark.anyio


@pytest.fixture
def threads() -> Iterator[DecodeThreads]:
    one = DecodeThreads(1)
    yield one
    one.shutdown(wait=True)


async def test_what_is_held_is_released_before_the_caller_goes_on(threads: DecodeThreads) -> None:
    ended: list[str] = []
    loop_thread = threading.current_thread()

    def on_end() -> None:
        assert threading.current_thread() is loop_thread
        ended.append("released")

    result = run_in_threads(threads, lambda: 7, on_end=on_end, caller=None, cost=USUAL_COST)
    assert ended == []
    assert await result == 7
    assert ended == ["released"]


async def test_a_continuation_gives_the_result(threads: DecodeThreads) -> None:
    def begin() -> Continuation:
        return Continuation(3, lambda: "decoded")

    assert await run_in_threads(threads, begin, on_end=lambda: None, caller="a", cost=1) == "decoded"


async def test_a_failure_is_the_callers(threads: DecodeThreads) -> None:
    ended: list[int] = []

    def fail() -> None:
        raise LookupError("broken")

    with pytest.raises(LookupError, match="broken"):
        await run_in_threads(threads, fail, on_end=lambda: ended.append(1), caller=None, cost=1)
    assert ended == [1]


async def test_work_that_is_cancelled_before_its_turn_never_runs(threads: DecodeThreads) -> None:
    begun, proceed, released = threading.Event(), threading.Event(), asyncio.Event()
    ran: list[str] = []

    def first() -> None:
        begun.set()
        assert proceed.wait(20)

    running = run_in_threads(threads, first, on_end=lambda: None, caller="a", cost=1)
    assert await asyncio.to_thread(begun.wait, 20)
    waiting = run_in_threads(threads, lambda: ran.append("second"), on_end=released.set, caller="a", cost=1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.wait_for(released.wait(), 20)  # while the first still runs
    assert not running.done()
    proceed.set()
    await running
    assert ran == []


async def test_a_caller_who_leaves_is_not_held_by_a_thread_that_cannot_be_stopped(threads: DecodeThreads) -> None:
    begun, proceed, released = threading.Event(), threading.Event(), asyncio.Event()

    def work() -> None:
        begun.set()
        assert proceed.wait(20)

    running = run_in_threads(threads, work, on_end=released.set, caller=None, cost=1)
    assert await asyncio.to_thread(begun.wait, 20)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not released.is_set()  # the thread still has what it works on
    proceed.set()
    await asyncio.wait_for(released.wait(), 20)
