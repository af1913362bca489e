"""Two runs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_NOTEWORTHY = 0.03  # changes below this are not called better or worse: runs differ by as much of themselves
# Of the figures that are not better when they are less.
_MORE_IS_BETTER = {"rate within the goal /s": True, "answers/s": True, "images a batch": None}
_SAME_PLAN = ("loop", "rate_per_s", "concurrency", "duration_s", "images", "mean_image_bytes", "path", "transport")
_SAME_SERVICE = ("model", "devices", "precision", "max_batch_size", "version")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of both.

    Args:
        more_is_better: None if neither is.
    """

    name: str
    before: float | None
    after: float | None
    more_is_better: bool | None

    @property
    def change(self) -> float | None:
        """As a share of the first."""
        if self.before is None or self.after is None or self.before == 0:
            return None
        return self.after / self.before - 1

    @property
    def change_in_words(self) -> str:
        return "" if self.change is None else f"{self.change:+.1%}"

    @property
    def is_better(self) -> bool | None:
        """None if they are about the same."""
        if self.change is None or abs(self.change) < _NOTEWORTHY or self.more_is_better is None:
            return None
        return (self.change > 0) == self.more_is_better


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two reports say, and what else differs between them.

    Args:
        differences: of the plans and the services, in words: figures of unlike runs are not to be compared.
    """

    names: tuple[str, str]
    rows: list[Row]
    differences: list[str]

    def as_json(self) -> dict[str, Any]:
        return {
            "before": self.names[0],
            "after": self.names[1],
            "figures": [
                {
                    "name": row.name,
                    "before": row.before,
                    "after": row.after,
                    "change": None if row.change is None else round(row.change, 4),
                    "better": row.is_better,
                }
                for row in self.rows
            ],
            "differences": self.differences,
        }


def compare(before: dict[str, Any], after: dict[str, Any], names: tuple[str, str]) -> Comparison:
    """The figures of two documents of `frcnn loadtest --json`."""
    figures = [_figures(document) for document in (before, after)]
    common = [name for name in figures[0] if name in figures[1]]
    rows = [Row(name, figures[0][name], figures[1][name], _MORE_IS_BETTER.get(name, False)) for name in common]
    differences = [
        f"the {kind} differ in {name.replace('_', ' ')}: {one.get(name)} and {other.get(name)}"
        for kind, one, other, keys in (
            ("tests", before["run"]["plan"], after["run"]["plan"], _SAME_PLAN),
            ("services", before.get("service") or {}, after.get("service") or {}, _SAME_SERVICE),
        )
        for name in keys
        if one.get(name) != other.get(name)
    ]
    return Comparison(names, rows, differences)


def _figures(document: dict[str, Any]) -> dict[str, float | None]:
    run = document["run"]
    figures: dict[str, float | None] = {}
    if document.get("search"):
        figures["rate within the goal /s"] = document["search"]["found_rate_per_s"]
    figures["answers/s"] = run["throughput_per_s"]
    figures["failed %"] = round(100 * run["failed"] / max(run["requests"], 1), 3)
    figures |= {f"{name} ms": value for name, value in (run["latency_ms"] or {}).items()}
    figures |= {f"{stage} p50 ms": spread["p50"] for stage, spread in run["stages_ms"].items() if spread}
    figures["images a batch"] = _mean_batch(run)
    return figures


def _mean_batch(run: dict[str, Any]) -> float | None:
    """Images in the batch that a request shared, on average."""
    sizes: dict[str, int] = run["batch_sizes"]
    whole = sum(sizes.values())
    return round(sum(int(size) * times for size, times in sizes.items()) / whole, 3) if whole else None
