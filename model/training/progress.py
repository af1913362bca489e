"""How a run goes, told to people and to files."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

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

from model.training.evaluation import Metrics

_SHORT = {
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "rpn box",
    "loss_classifier": "class",
    "loss_box_reg": "box",
}
_SMOOTHING = 0.95


class ProgressBar:
    """A bar with the smoothed losses, the rate and the time left; plain lines where there is no terminal."""

    def __init__(self, iterations: int, done: int = 0, *, line_every: int = 20, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
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


class JsonLog:
    """One JSON object a line: every update's losses in full, and every evaluation."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def updated(self, iteration: int, losses: Mapping[str, float], learning_rate: float) -> None:
        self._write({"iteration": iteration, "learning_rate": learning_rate, **losses})

    def evaluated(self, iteration: int, metrics: Metrics, is_best: bool) -> None:
        self._write({"iteration": iteration, "is_best": is_best, **metrics.as_json()})

    def _write(self, values: Mapping[str, object]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
