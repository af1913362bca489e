from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial

import pytest

from service.batching.decode_threads import DecodeThreads


class Thing:
    """Can be referred to weakly."""


@pytest.fixture
def one_thread() -> Iterator[DecodeThreads]:
    threads = DecodeThreads(1)
    yield threads
    threads.shutdown(wait=True, cancel=True)


@pytest.fixture
def gate(one_thread: DecodeThreads) -> threading.Event:
    """The only thread is busy until this is set."""
    begun, proceed = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert proceed.wait(20)

    one_thread.submit(wait, "gate")
    assert begun.wait(20)
    return proceed


def test_callers_take_turns(one_thread: DecodeThreads, gate: threading.Event) -> None:
    order: list[str] = []
    names = [*["greedy"] * 5, "lone"]
    waits: list[Future[None]] = [one_thread.submit(partial(order.append, name), name) for name in names]
    gate.set()
    for wait in waits:
        wait.result(20)
    assert order.index("lone") <= 1
    assert order.count("greedy") == 5


def test_what_is_cancelled_never_runs_and_is_freed_at_once(one_thread: DecodeThreads, gate: threading.Event) -> None:
    thing = Thing()
    ran: list[Thing] = []
    freed = weakref.ref(thing)
    cancelled = one_thread.submit(partial(ran.append, thing))
    del thing
    assert cancelled.cancel()
    assert freed() is None
    gate.set()
    assert one_thread.submit(lambda: 5).result(20) == 5
    assert not ran


def test_a_result_is_freed_with_its_future(one_thread: DecodeThreads) -> None:
    gc.disable()
    try:
        made = one_thread.submit(Thing)
        freed = weakref.ref(made.result(20))
        one_thread.submit(lambda: None).result(20)  # the thread has released what came before
        del made
        assert freed() is None
    finally:
        gc.enable()


def test_a_failure_is_its_callers_and_makes_no_cycle(one_thread: DecodeThreads) -> None:
    freed: list[weakref.ref[Thing]] = []

    def fail() -> None:
        thing = Thing()
        freed.append(weakref.ref(thing))
        raise ValueError("broken")

    gc.disable()
    try:
        failed = one_thread.submit(fail)
        assert type(failed.exception(20)) is ValueError
        one_thread.submit(lambda: None).result(20)  # the thread has released what came before
        del failed
        assert freed[0]() is None
    finally:
        gc.enable()


def test_work_that_overruns_is_counted(one_thread: DecodeThreads, gate: threading.Event) -> None:
    time.sleep(0.02)
    assert one_thread.overrunning(0.01) == 1
    assert one_thread.overrunning(60) == 0
    gate.set()
    one_thread.submit(lambda: None).result(20)
    assert one_thread.overrunning(0) == 0


def test_at_the_end_what_waits_is_given_up(one_thread: DecodeThreads, gate: threading.Event) -> None:
    waiting = one_thread.submit(lambda: None)
    one_thread.shutdown(wait=False, cancel=True)
    assert waiting.cancelled()
    gate.set()
