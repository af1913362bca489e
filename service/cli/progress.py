"""Progress: a bar of 80 columns on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from service.cli.errors import say, stderr

if TYPE_CHECKING:
    from model.evaluation.average_precision import Metrics

_SHORT = {
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "rpn box",
    "loss_classifier": "class",
    "loss_box_reg": "box",
}
_SMOOTHING = 0.95
_LINE_EVERY_S = 30.0


@contextmanager
def counting(what: str, total: int, *, console: Console = stderr) -> Iterator[Callable[[], None]]:
    """Show how many of a number of things are done, how fast, and the time left.

    Args:
        what: a word for what is done: "detecting".

    Yields:
        What is called after each.
    """
    began = last_line = time.monotonic()
    done = 0

    def advance() -> None:
        nonlocal done, last_line
        done += 1
        now = time.monotonic()
        bar.update(task, completed=done, description=_pace(done, total, now - began))
        if not console.is_terminal and now - last_line > _LINE_EVERY_S:
            last_line = now
            say(f"{what} {done}/{total}, {_pace(done, total, now - began)}")

    with _bar(what, console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield advance


class ProgressBar:
    """Shows how a training run goes: the smoothed losses, the pace and the time left."""

    def __init__(self, iterations: int, done: int = 0, *, line_every: int = 20, console: Console | None = None) -> None:
        self._console = console or stderr
        self._line_every = line_every
        self._smoothed: dict[str, float] = {}
        self._done = done
        self._began = self._last_line = time.monotonic()
        self._iterations = iterations
        self._bar = _bar("training", self._console, transient=False)
        self._task = self._bar.add_task("", total=iterations, completed=done)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def updated(self, iteration: int, losses: Mapping[str, float], learning_rate: float) -> None:
        for name, value in losses.items():
            self._smoothed[name] = _SMOOTHING * self._smoothed.get(name, value) + (1 - _SMOOTHING) * value
        done, total = iteration - self._done, self._iterations - self._done
        now = time.monotonic()
        pace = _pace(done, total, now - self._began)
        loss = f"loss {sum(self._smoothed.values()):.3f}"
        self._bar.update(self._task, completed=iteration, description=f"{loss}, {pace}")
        is_due = iteration % self._line_every == 0 or now - self._last_line > _LINE_EVERY_S
        if not self._console.is_terminal and (is_due or iteration == self._iterations):
            self._last_line = now
            parts = " ".join(f"{_SHORT.get(name, name)} {value:.3f}" for name, value in self._smoothed.items())
            self._say(f"iteration {iteration}/{self._iterations} {loss} ({parts}) rate {learning_rate:.5f} {pace}")

    def evaluated(self, iteration: int, metrics: Metrics, is_best: bool) -> None:
        overall = metrics.overall
        self._say(
            f"iteration {iteration}: AP {overall.ap or 0:.3f} AP50 {overall.ap50 or 0:.3f} AP75 {overall.ap75 or 0:.3f}"
            + (", the best so far" if is_best else "")
        )

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)


def _bar(what: str, console: Console, *, transient: bool) -> Progress:
    return Progress(
        TextColumn(what),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        disable=not console.is_terminal,
        transient=transient,
        # Results that are printed on the same terminal go above the bar; those that go to a file must reach it.
        redirect_stdout=sys.stdout.isatty(),
    )


def _pace(done: int, total: int, elapsed_s: float) -> str:
    """`0.52 s each, 3 min left`, or `12.3/s, 40 s left`."""
    each_s = elapsed_s / max(done, 1)
    left_s = each_s * (total - done)
    rate = f"{each_s:.2f} s each" if each_s > 0.5 else f"{1 / max(each_s, 1e-9):.1f}/s"
    for unit, seconds in (("h", 3600), ("min", 60)):
        if left_s >= 2 * seconds:
            return f"{rate}, {left_s / seconds:.0f} {unit} left"
    return f"{rate}, {left_s:.0f} s left"
