"""The log of a run as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from model.evaluation.average_precision import Metrics


class JsonLog:
    """Writes one JSON object a line: every update's losses in full, and every evaluation."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def updated(self, iteration: int, losses: Mapping[str, float], learning_rate: float) -> None:
        self._write({"iteration": iteration, "learning_rate": learning_rate, **losses})

    def evaluated(self, iteration: int, metrics: Metrics, is_best: bool) -> None:
        self._write({"iteration": iteration, "is_best": is_best, **metrics.as_json()})

    def _write(self, values: Mapping[str, object]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
