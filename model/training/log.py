"""The log of a run as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from model.evaluation.average_precision import Metrics
from model.weights.whole_files import replacing

LOG_NAME = "log.jsonl"


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


def cut_log(path: Path, iteration: int, *, is_judged: bool = True) -> None:
    """Forget what was logged after the snapshot, which happens again, and lines that a kill or a power cut tore.

    Args:
        path: of the log; a missing file stays missing.
        iteration: that the snapshot is of.
        is_judged: whether the evaluation that is due at that iteration was done when the snapshot was taken. If not, it
            happens again as well.
    """
    if path.is_file():
        kept = [line for line in path.read_bytes().splitlines() if not _happens_again(line, iteration, is_judged)]
        partial = path.with_name(f"{path.name}.partial")
        with replacing(path, partial):
            partial.write_bytes(b"".join(line + b"\n" for line in kept))


def _happens_again(line: bytes, iteration: int, is_judged: bool) -> bool:
    try:
        values = json.loads(line)
        logged = int(values["iteration"])
    except (ValueError, KeyError, TypeError):
        return True
    return logged > iteration or (logged == iteration and not is_judged and "is_best" in values)
