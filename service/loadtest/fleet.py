"""The processes that carry a plan out together.

The load is always made in processes of its own, be it one: what is shown meanwhile would else delay what is measured.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from service.loadtest.generator import Generator
from service.loadtest.plan import Plan
from service.loadtest.samples import Samples

_REPORT_INTERVAL_S = 0.5
_HEAD_START_S = 0.05


class WorkerLostError(RuntimeError):
    """A process that made the load has ended before its time."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What one process has seen since it last told.

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
    """

    plan: Plan
    workers: int
    samples: Samples
    busy: float


def carry_out(plan: Plan, *, workers: int = 1, on_progress: Callable[[Progress], None] = lambda _: None) -> Measured:
    """Run a plan in so many processes, and wait for its end.

    Arrivals of several independent Poisson processes are together one of the sum of their rates.

    Raises:
        WorkerLostError: a process died.
    """
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes = []
    try:
        for number, share in enumerate(shares(plan, workers)):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, number, share), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            _received(pipe)  # it is ready
        start = time.monotonic() + _HEAD_START_S
        for pipe in pipes:
            pipe.send(start)
        results = _results(pipes, on_progress)
        return Measured(plan, workers, Samples.together([r[0] for r in results]), max(r[1] for r in results))
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


def _results(pipes: Sequence[Connection], on_progress: Callable[[Progress], None]) -> list[tuple[Samples, float]]:
    results = []
    open_pipes = list(pipes)
    while open_pipes:
        for pipe in wait(open_pipes):
            assert isinstance(pipe, Connection)
            message = _received(pipe)
            if isinstance(message, Progress):
                on_progress(message)
            else:
                results.append(message)
                open_pipes.remove(pipe)
    return results


def _received(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        raise WorkerLostError("a process of the load test has died; its message is above") from None


def _work(pipe: Connection, number: int, plan: Plan) -> None:
    """One process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    with suppress(ImportError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_generate(pipe, number, plan))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _generate(pipe: Connection, number: int, plan: Plan) -> None:
    generator = Generator(plan)
    gc.freeze()  # or requests would wait while the collector looks through all that was imported
    pipe.send("ready")
    start: float = pipe.recv()
    telling = asyncio.ensure_future(_tell(pipe, number, generator))
    began, used = time.perf_counter(), time.process_time()
    samples = await generator.run(start)
    busy = (time.process_time() - used) / (time.perf_counter() - began)
    telling.cancel()
    pipe.send((samples, busy))


async def _tell(pipe: Connection, number: int, generator: Generator) -> None:
    told = 0
    seen = generator.recorder
    while True:
        await asyncio.sleep(_REPORT_INTERVAL_S)
        rows = range(told, len(seen.failures))
        told = len(seen.failures)
        latencies = [seen.done[row] - seen.intended[row] for row in rows if not seen.failures[row]]
        pipe.send(Progress(number, latencies, len(rows) - len(latencies), generator.in_flight))
