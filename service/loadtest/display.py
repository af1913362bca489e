"""What the terminal shows: figures while a run goes on, tables when it is over."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Any, Self

import numpy as np
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.loadtest.fleet import Progress
from service.loadtest.plan import Plan

_RECENT_S = 5.0


class LiveDisplay:
    """Figures of the last seconds, redrawn while a run goes on; nothing where there is no terminal.

    Args:
        console: where to draw.
        plan: what is being carried out.
    """

    def __init__(self, console: Console, plan: Plan) -> None:
        self._shown = console.is_terminal
        self._whole_s = plan.warmup_s + plan.duration_s
        self._warmup_s = plan.warmup_s
        self._load = load_in_words(plan.rate, plan.concurrency)
        self._began = time.monotonic()
        self._answered = self._failed = 0
        self._in_flight: dict[int, int] = {}  # of each process
        self._recent: deque[tuple[float, list[float]]] = deque()
        self._live = Live(console=console, get_renderable=self._render, transient=True, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._shown:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._live.stop()

    def update(self, progress: Progress) -> None:
        self._answered += len(progress.latencies_s)
        self._failed += progress.failed
        self._in_flight[progress.worker] = progress.in_flight
        self._recent.append((time.monotonic(), progress.latencies_s))

    def _render(self) -> RenderableType:
        now = time.monotonic()
        while self._recent and self._recent[0][0] < now - _RECENT_S:
            self._recent.popleft()
        latencies = np.array([latency for _, part in self._recent for latency in part]) * 1000
        elapsed_s = min(now - self._began, self._whole_s)
        state = "warming up" if elapsed_s < self._warmup_s else "measuring"
        recent = "no answer yet"
        if len(latencies):
            recent = f"p50 {np.median(latencies):.1f} ms   max {latencies.max():.1f} ms"
        span_s = min(_RECENT_S, max(now - self._began, 0.1))
        grid = Table.grid(padding=(0, 2))
        grid.add_row(Text(state, style="bold"), self._load, ProgressBar(self._whole_s, elapsed_s, width=30))
        grid.add_row(
            f"{len(latencies) / span_s:.1f} answers/s",
            recent,
            Text.assemble(
                f"{self._answered} answered, {sum(self._in_flight.values())} in flight, ",
                (f"{self._failed} failed", "red" if self._failed else ""),
            ),
        )
        return grid


def load_in_words(rate: float | None, concurrency: int | None) -> str:
    return f"{rate:.4g} arrivals/s" if rate is not None else f"{concurrency} callers"


def print_run(console: Console, run: dict[str, Any]) -> None:
    """The figures of one run."""
    plan = run["plan"]
    load = load_in_words(plan["rate_per_s"], plan["concurrency"])
    console.print(
        f"{plan['loop']} loop, {load}, {plan['duration_s']:.4g} s after {plan['warmup_s']:.4g} s of warm-up, "
        f"{plan['images']} image{'' if plan['images'] == 1 else 's'}"
    )
    console.print(
        f"{run['throughput_per_s']:.1f} answers/s; of {run['requests']} requests {run['failed']} failed", style="bold"
    )
    for failure, times in run["failures"].items():
        console.print(f"  {times} x {failure}", style="red", markup=False)
    rows = {"latency": run["latency_ms"], **{f"  {stage}": spread for stage, spread in run["stages_ms"].items()}}
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("ms", no_wrap=True, min_width=max(map(len, rows)))
    for name in run["latency_ms"] or {}:
        table.add_column(name, justify="right")
    for name, spread in rows.items():
        if spread is not None:
            table.add_row(name, *map(_milliseconds, spread.values()))
    if run["latency_ms"] is not None:
        console.print(table)
    if run["batch_sizes"]:
        whole = sum(run["batch_sizes"].values())
        sizes = ", ".join(f"{size}: {times / whole:.0%}" for size, times in run["batch_sizes"].items())
        console.print(f"images in the batch that a request shared: {sizes}")
    for warning in run["warnings"]:
        console.print(f"Note: {warning}", style="yellow", markup=False)


def verdict_of(step: dict[str, Any]) -> str:
    """In words: met, missed, or that the service fell behind the arrivals."""
    if step["met"]:
        return "met" if step["enough"] else "met, by too few requests"
    return "missed" if step["kept_up"] else "fell behind"


def print_search(console: Console, search: dict[str, Any]) -> None:
    """The rates that were tried, and the highest that met the goal."""
    table = Table("arrivals/s", f"p{search['quantile'] * 100:g} ms", "answers/s", "failed", "", box=None)
    for step in sorted(search["steps"], key=lambda step: float(step["rate_per_s"])):
        value = "-" if step["value_ms"] is None else f"{step['value_ms']:.1f}"
        verdict = Text(verdict_of(step), style="" if not step["enough"] else "green" if step["met"] else "red")
        table.add_row(
            f"{step['rate_per_s']:.2f}", value, f"{step['throughput_per_s']:.1f}", str(step["failed"]), verdict
        )
    console.print(table)
    found = search["found_rate_per_s"]
    if found is None:
        console.print(f"no rate that was tried met {search['goal']}", style="bold red")
    else:
        console.print(f"{found:.2f} arrivals/s is the highest rate that met {search['goal']}; its run:", style="bold")


def _milliseconds(value: float | None) -> str:
    """Short: nine of them stand in a line."""
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"
