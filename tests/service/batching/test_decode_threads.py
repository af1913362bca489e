from __future__ import annotations

import gc
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from functools import partial

import pytest

from service.batching.decode_threads import Continuation, DecodeThreads, cost_of
from tests.support.processes import niceness


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
    assert (one_thread.all_overrun(0.01), one_thread.all_overrun(60)) == (True, False)
    gate.set()
    one_thread.submit(lambda: None).result(20)
    assert one_thread.overrunning(0) == 0


def test_at_the_end_what_waits_is_given_up(one_thread: DecodeThreads, gate: threading.Event) -> None:
    waiting = one_thread.submit(lambda: None)
    one_thread.shutdown(wait=False, cancel=True)
    assert waiting.cancelled()
    gate.set()


def test_a_cheap_piece_goes_before_expensive_continuations(one_thread: DecodeThreads, gate: threading.Event) -> None:
    order: list[str] = []

    def opened(name: str, cost: int) -> Continuation | None:
        order.append(f"open {name}")
        return Continuation(cost, partial(order.append, name))

    waits = [
        one_thread.submit(partial(opened, name, cost), name) for name, cost in (("a", 16), ("b", 16), ("small", 1))
    ]
    gate.set()
    for wait in waits:
        wait.result(20)
    assert order == ["open a", "open b", "open small", "small", "a", "b"]


@pytest.mark.parametrize("waits", [True, False])
def test_a_continuation_that_is_cancelled_never_runs_and_is_freed(
    one_thread: DecodeThreads, gate: threading.Event, waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """While it waits behind another piece, or while the part before it runs."""
    begun, proceed = threading.Event(), threading.Event()
    ran: list[Thing] = []
    thing = Thing()
    freed = weakref.ref(thing)

    def block() -> None:
        begun.set()
        assert proceed.wait(20)

    def first(kept: list[Thing]) -> Continuation | None:
        if not waits:
            block()
        return Continuation(16, partial(ran.append, kept.pop()))

    cancelled = one_thread.submit(partial(first, [thing]), "a")
    other = one_thread.submit(block, "b")  # runs before the continuation
    del thing
    gate.set()
    assert begun.wait(20)
    cancelled.cancel()
    if waits:
        assert cancelled.done()
        assert freed() is None
    proceed.set()
    other.result(20)
    assert isinstance(cancelled.exception(20), CancelledError)
    assert one_thread.submit(lambda: 5).result(20) == 5
    assert freed() is None
    assert not ran
    assert not caplog.records  # of a future that is asked to run when it is over


def test_a_failure_in_a_continuation_is_the_pieces(one_thread: DecodeThreads) -> None:
    def fail() -> None:
        raise ValueError("broken")

    def begin() -> Continuation | None:
        return Continuation(1, fail)

    assert type(one_thread.submit(begin).exception(20)) is ValueError


def test_costs_grow_with_the_work() -> None:
    assert cost_of(0) == 1
    assert cost_of(67_108_864) == 65


def test_what_is_short_does_not_wait_for_what_is_long(one_thread: DecodeThreads) -> None:
    begun, proceed = threading.Event(), threading.Event()

    def long() -> str:
        begun.set()
        assert proceed.wait(20)
        return "long"

    def begin() -> str | Continuation:
        return Continuation(64, long)

    waiting = one_thread.submit(begin, "a")
    assert begun.wait(20)
    assert one_thread.submit(lambda: "short", "b").result(20) == "short"
    assert one_thread.overrunning(0) == 1
    assert not one_thread.all_overrun(0)  # short pieces still run
    proceed.set()
    assert waiting.result(20) == "long"


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own elsewhere")
def test_what_is_long_has_less_processor_time(one_thread: DecodeThreads) -> None:
    assert one_thread.submit(niceness).result(20) == niceness()
    assert one_thread.submit(niceness, cost=64).result(20) == min(niceness() + 10, 19)


def test_long_pieces_run_where_no_priority_may_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", denied)
    threads = DecodeThreads(1)
    try:
        assert threads.submit(lambda: "done", cost=64).result(20) == "done"
    finally:
        threads.shutdown(wait=True)
