"""Progress bars: of training, and of anything that is counted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from service.cli.errors import stderr

if TYPE_CHECKING:
    from model.training.evaluation import Metrics

_SHORT = {
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "rpn box",
    "loss_classifier": "class",
    "loss_box_reg": "box",
}
_SMOOTHING = 0.95


class ProgressBar:
    """Shows how a training run goes: a bar with the smoothed losses and the time left, or lines without a terminal."""

    def __init__(self, iterations: int, done: int = 0, *, line_every: int = 20, console: Console | None = None) -> None:
        self._console = console or stderr
        self._line_every = line_every
        self._smoothed: dict[str, float] = {}
        self._begun = (done, time.monotonic())
        self._iterations = iterations
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID = self._bar.add_task("", total=iterations, completed=done)

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
        parts = " ".join(f"{_SHORT.get(name, name)} {value:.3f}" for name, value in self._smoothed.items())
        text = f"loss {sum(self._smoothed.values()):.3f} ({parts}) rate {learning_rate:.5f}"
        self._bar.update(self._task, completed=iteration, description=text)
        if not self._console.is_terminal and (iteration % self._line_every == 0 or iteration == self._iterations):
            done, start = self._begun
            pace = (time.monotonic() - start) / max(1, iteration - done)
            left = pace * (self._iterations - iteration) / 60
            self._console.print(
                f"iteration {iteration}/{self._iterations} {text} {pace:.2f} s each, {left:.0f} min left",
                soft_wrap=True,
                highlight=False,
            )

    def evaluated(self, iteration: int, metrics: Metrics, is_best: bool) -> None:
        overall = metrics.overall
        self._console.print(
            f"iteration {iteration}: AP {overall.ap or 0:.3f} AP50 {overall.ap50 or 0:.3f} AP75 {overall.ap75 or 0:.3f}"
            + (", the best so far" if is_best else ""),
            soft_wrap=True,
            highlight=False,
        )
