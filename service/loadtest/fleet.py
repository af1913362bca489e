"""The processes that carry a plan out together.

The load comes from processes of its own, even if it is one: the display would otherwise delay what is measured.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any, cast

from service.loadtest.generator import Generator
from service.loadtest.plan import Plan
from service.loadtest.samples import Samples

_REPORT_INTERVAL_S = 0.5
_LOOK_INTERVAL_S = 0.2  # for Ctrl-C
_HEAD_START_S = 0.05


class WorkerLostError(RuntimeError):
    """A process that made the load has ended before its time."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What one process has seen since its last report.

    Args:
        worker: its number.
        latencies_s: of the requests that succeeded.
        in_flight: now.
    """

    worker: int
    latencies_s: list[float]
    failed: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run gave.

    Args:
        samples: of all processes, warm-up included.
        busy: share of its processor time that the busiest process used. Near 1, it measures itself.
        interrupted: whether it ended before its time; the plan has the duration that was measured.
    """

    plan: Plan
    workers: int
    samples: Samples
    busy: float
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class _Line:
    """The pipes to one process, one for each direction.

    The process watches its orders on its event loop. uvloop makes what it watches non-blocking in both directions, and
    a report that does not fit into such a pipe fails.
    """

    orders: Connection
    reports: Connection


def run_plan(plan: Plan, *, workers: int = 1, on_progress: Callable[[Progress], None] = lambda _: None) -> Measured:
    """Run a plan in some processes, and wait for its end. Ctrl-C ends it early, with what was measured.

    Arrivals of several independent Poisson processes are together one of the sum of their rates.

    Raises:
        WorkerLostError: a process died.
        KeyboardInterrupt: Ctrl-C came before anything was measured.
    """
    context = multiprocessing.get_context("spawn")
    lines: list[_Line] = []
    processes = []
    try:
        for number, share in enumerate(shares(plan, workers)):
            their_orders, orders = context.Pipe(duplex=False)
            reports, their_reports = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(their_orders, their_reports, number, share), daemon=True)
            process.start()
            their_orders.close()
            their_reports.close()
            lines.append(_Line(orders, reports))
            processes.append(process)
        for line in lines:
            _received(line.reports)  # it is ready
        start = time.monotonic() + _HEAD_START_S
        for line in lines:
            _order(line, start)
        with _noted_interrupt() as interrupted:
            results, stopped = _results(lines, on_progress, interrupted)
        if stopped is not None:
            measured_s = stopped - start - plan.warmup_s
            if measured_s <= 0:
                raise KeyboardInterrupt
            plan = replace(plan, duration_s=min(plan.duration_s, measured_s))
        samples, busy = Samples.merged([r[0] for r in results]), max(r[1] for r in results)
        return Measured(plan, workers, samples, busy, interrupted=stopped is not None)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def shares(plan: Plan, workers: int) -> list[Plan]:
    """The plan of each process."""
    parts = []
    for i in range(workers):
        part = replace(plan, seed=plan.seed * workers + i)
        if plan.rate is not None:
            part = replace(part, rate=plan.rate / workers)
        if plan.concurrency is not None:
            part = replace(part, concurrency=plan.concurrency // workers + (i < plan.concurrency % workers))
        parts.append(part)
    return parts


@contextmanager
def _noted_interrupt() -> Iterator[threading.Event]:
    """Set an event at Ctrl-C, in place of an exception that would break what is being read from a pipe."""
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = signal.signal(signal.SIGINT, lambda *_: noted.set())
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _results(
    lines: Sequence[_Line], on_progress: Callable[[Progress], None], interrupted: threading.Event
) -> tuple[list[tuple[Samples, float]], float | None]:
    """What each process measured, and when all of them were stopped, if they were."""
    results: list[tuple[Samples, float]] = []
    stopped: float | None = None
    reporting = [line.reports for line in lines]
    while reporting:
        if interrupted.is_set() and stopped is None:
            stopped = time.monotonic()
            for line in lines:
                with suppress(WorkerLostError):  # it has just ended
                    _order(line, "stop")
        for reports in cast("list[Connection]", wait(reporting, _LOOK_INTERVAL_S)):
            message = _received(reports)
            if isinstance(message, Progress):
                on_progress(message)
            else:
                results.append(message)
                reporting.remove(reports)
    return results, stopped


def _order(line: _Line, order: object) -> None:
    try:
        line.orders.send(order)
    except OSError:
        raise _lost() from None


def _received(reports: Connection) -> Any:
    try:
        return reports.recv()
    except (EOFError, OSError):  # nothing, or half a report
        raise _lost() from None


def _lost() -> WorkerLostError:
    return WorkerLostError("a process of the load test has died; its message is above")


def _work(orders: Connection, reports: Connection, number: int, plan: Plan) -> None:
    """Run one process of the load test."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    with suppress(ImportError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_generate(orders, reports, number, plan))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _generate(orders: Connection, reports: Connection, number: int, plan: Plan) -> None:
    generator = Generator(plan)
    outbox: SimpleQueue[object] = SimpleQueue()
    # A thread sends: a display that stalls must not stop the event loop, which would count as latency.
    sending = threading.Thread(target=_send, args=(reports, outbox), daemon=True)
    sending.start()
    gc.freeze()  # or requests would wait while the collector looks through all that was imported
    outbox.put("ready")
    start: float = orders.recv()
    telling = asyncio.ensure_future(_tell(outbox, number, generator))
    asyncio.get_running_loop().add_reader(orders.fileno(), generator.stop)  # whatever comes now means that
    began, used = time.perf_counter(), time.process_time()
    samples = await generator.run(start)
    busy = (time.process_time() - used) / (time.perf_counter() - began)
    telling.cancel()
    asyncio.get_running_loop().remove_reader(orders.fileno())
    outbox.put((samples, busy))
    outbox.put(None)
    sending.join()


def _send(reports: Connection, outbox: SimpleQueue[object]) -> None:
    with suppress(OSError):  # the parent has ended
        while (report := outbox.get()) is not None:
            reports.send(report)


async def _tell(outbox: SimpleQueue[object], number: int, generator: Generator) -> None:
    told = 0
    seen = generator.recorder
    while True:
        await asyncio.sleep(_REPORT_INTERVAL_S)
        rows = range(told, len(seen.failures))
        told = len(seen.failures)
        latencies = [seen.done[row] - seen.intended[row] for row in rows if not seen.failures[row]]
        outbox.put(Progress(number, latencies, len(rows) - len(latencies), generator.in_flight))
