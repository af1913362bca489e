from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator

import pytest

from service.worker_threads import WorkerThreads, _Piece

pytestmark = pytest.mark.anyio


class Body:
    """Something large."""


@pytest.fixture
async def threads() -> AsyncIterator[WorkerThreads]:
    pool = WorkerThreads(3, "work")
    yield pool
    pool.close()


async def test_each_gets_its_own_result_or_failure(threads: WorkerThreads) -> None:
    def divide(number: int) -> float:
        return 60 / number

    results = await asyncio.gather(*(threads.run(lambda n=n: divide(n)) for n in range(500)), return_exceptions=True)
    assert isinstance(results[0], ZeroDivisionError)
    assert results[1:] == [60 / n for n in range(1, 500)]


async def test_even_what_ends_a_thread_is_told_to_whoever_waits(threads: WorkerThreads) -> None:
    def leave() -> None:
        raise SystemExit

    for _ in range(10):  # more than there are threads
        with pytest.raises(SystemExit):
            await threads.run(leave)
    assert await threads.run(lambda: "alive") == "alive"


async def test_work_that_blocks_has_all_threads_and_leaves_those_that_are_free(threads: WorkerThreads) -> None:
    inside, gate = threading.Barrier(4), threading.Event()

    def block() -> None:
        inside.wait(20)
        gate.wait(20)

    blocked = [threads.run(block) for _ in range(3)]
    await asyncio.to_thread(inside.wait, 20)  # all three are at once
    late = threads.run(lambda: "late")
    await asyncio.sleep(0.05)
    assert not late.done()
    gate.set()
    assert await late == "late"
    await asyncio.gather(*blocked)
    # One that is busy for long does not hold up what comes after it.
    gate.clear()
    busy = [threads.run(lambda: gate.wait(20)) for _ in range(2)]
    for number in range(200):
        assert await asyncio.wait_for(threads.run(lambda n=number: n), 20) == number
        if number % 20 == 0:
            await asyncio.sleep(0.001)  # the free one falls asleep
    gate.set()
    await asyncio.gather(*busy)


async def test_what_is_cancelled_before_its_turn_is_left_out() -> None:
    threads = WorkerThreads(1, "work")
    gate, done = threading.Event(), []
    first = threads.run(lambda: gate.wait(20))
    second = threads.run(lambda: done.append("second"))
    third = threads.run(lambda: done.append("third"))
    second.cancel()
    first.cancel()  # it goes on, and nobody is told
    gate.set()
    await third
    assert done == ["third"]
    threads.close()


async def test_what_is_cancelled_before_its_turn_is_let_go_at_once() -> None:
    threads = WorkerThreads(1, "work")
    gate = threading.Event()
    first = threads.run(lambda: gate.wait(20))
    body = Body()
    seen = weakref.ref(body)
    second = threads.run(lambda kept=body: kept)
    del body
    second.cancel()
    assert seen() is None
    gate.set()
    assert await first
    threads.close()


async def test_work_that_comes_as_a_thread_lies_down_wakes_it() -> None:
    """Between its last look for work, and its being known to sleep."""
    threads = WorkerThreads(1, "work")

    class Bed(list[threading.Lock]):
        late: asyncio.Future[str] | None = None

        def append(self, asleep: threading.Lock) -> None:
            if self.late is None:
                piece = self.late = _Piece(loop=loop)
                piece.work = lambda: "late"
                threads._waiting.append(piece)
            super().append(asleep)

    loop, bed = asyncio.get_running_loop(), Bed()
    await threads.run(lambda: setattr(threads, "_idle", bed))
    async with asyncio.timeout(20):
        while bed.late is None:
            await asyncio.sleep(0.001)
        assert await bed.late == "late"
    threads.close()


async def test_threads_that_the_system_refuses_are_started_with_the_next_work(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = WorkerThreads(3, "work")
    start, begun = threading.Thread.start, []

    def refuse_the_second(thread: threading.Thread) -> None:
        begun.append(thread)
        if len(begun) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_the_second)
    with pytest.raises(RuntimeError, match="can't start"):
        threads.run(lambda: None)
    assert await threads.run(lambda: "done") == "done"
    assert len(begun) == 4
    threads.close()


async def test_closed_it_cancels_what_waits_and_its_threads_end() -> None:
    threads = WorkerThreads(2, "ending")
    inside, gate = threading.Barrier(3), threading.Event()

    def block() -> bool:
        inside.wait(20)
        return gate.wait(20)

    running = [threads.run(block) for _ in range(2)]
    await asyncio.to_thread(inside.wait, 20)
    waiting = threads.run(lambda: None)
    threads.close()
    assert waiting.cancelled()
    with pytest.raises(RuntimeError):
        threads.run(lambda: None)
    gate.set()
    await asyncio.gather(*running)
    end = time.monotonic() + 20
    while (alive := [thread.name for thread in threading.enumerate() if "ending" in thread.name]) and (
        time.monotonic() < end
    ):
        await asyncio.sleep(0.01)
    assert not alive


async def test_nothing_is_kept_of_what_was_done(threads: WorkerThreads) -> None:
    picture = Body()
    seen = weakref.ref(picture)
    assert await threads.run(lambda kept=picture: kept) is picture
    del picture
    await asyncio.sleep(0.2)  # no other work comes
    assert seen() is None


async def test_nor_of_what_failed(threads: WorkerThreads) -> None:
    def fail(picture: Body) -> None:
        raise ValueError("broken")

    async def attempt() -> weakref.ref[Body]:
        picture = Body()
        with pytest.raises(ValueError, match="broken"):
            await threads.run(lambda kept=picture: fail(kept))
        return weakref.ref(picture)

    gc.disable()
    try:
        seen = await attempt()
        await threads.run(lambda: None)
        await asyncio.sleep(0.05)
        assert seen() is None
    finally:
        gc.enable()


async def test_what_no_future_can_hold_is_told_as_another_failure(threads: WorkerThreads) -> None:
    outcomes = [threads.run(lambda: next(iter(()))), *(threads.run(lambda n=n: n) for n in range(5))]
    results = await asyncio.wait_for(asyncio.gather(*outcomes, return_exceptions=True), 20)
    assert isinstance(results[0], RuntimeError)
    assert results[1:] == list(range(5))


async def test_from_many_tasks_nothing_is_lost(threads: WorkerThreads) -> None:
    async def call(number: int) -> int:
        total = 0
        for step in range(300):
            total += await threads.run(lambda step=step: number + step)
            if step % 7 == number % 7:
                await asyncio.sleep(0)
        return total

    totals = await asyncio.wait_for(asyncio.gather(*map(call, range(16))), 60)
    assert totals == [300 * number + 299 * 150 for number in range(16)]
