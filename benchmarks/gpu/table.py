"""The figures of a run beside their goals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Found = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A row of the table.

    Attributes:
        part: of the run, that measures it.
        at_most: the goal is an upper bound.
    """

    name: str
    part: str
    bound: float
    at_most: bool = False


# For one H100, fp16, pictures of 640x480.
GOALS = {
    "best": Goal(name="images/s, model alone, best batch", part="model", bound=1000),
    "one_ms": Goal(name="ms, model alone, batch 1", part="model", bound=2.2, at_most=True),
    "times_eager": Goal(name="times torchvision eager fp32, batch 1", part="model", bound=21),
    "times_autocast": Goal(name="times torchvision's best autocast batch", part="model", bound=5.5),
    "share_64": Goal(name="over HTTP, 64 callers, % of the model alone", part="http", bound=95),
    "share_192": Goal(name="over HTTP, 192 callers, % of the model alone", part="http", bound=95),
    "cores": Goal(name="server's cores for one caller", part="http", bound=1.2, at_most=True),
    "p99_ms": Goal(name="p99 at 80 % load, ms", part="http", bound=60, at_most=True),
    "start_s": Goal(name="process start to first answer, s", part="http", bound=10, at_most=True),
    "shape_ms": Goal(name="slowest request of a cold mix of 30 shapes, ms", part="http", bound=500, at_most=True),
    "fp16_lost": Goal(name="AP points by which fp16 differs from fp32", part="quality", bound=0.2, at_most=True),
    "bf16_lost": Goal(name="AP points by which bf16 differs from fp32", part="quality", bound=0.2, at_most=True),
    "training": Goal(name="training, images/s, 480x640, batch 16, bf16", part="training", bound=228),
    "tests": Goal(name="tests that fail", part="tests", bound=0, at_most=True),
    "faults": Goal(name="tests of faults that fail", part="faults", bound=0, at_most=True),
}


def figures(found: Found) -> dict[str, float | None]:
    """The figure of each goal; None where it was not measured."""
    best = _best_rate(found, "ours fp16")
    one = _at(found, "model", "speed", "ours fp16 x1")
    return {
        "best": best,
        "one_ms": _ratio(1000, one),
        "times_eager": _ratio(best, _at(found, "model", "speed", "torchvision fp32 x1")),
        "times_autocast": _ratio(best, _best_rate(found, "torchvision autocast")),
        "share_64": _percent(_at(found, "http", "callers 64", "images_per_s"), best),
        "share_192": _percent(_at(found, "http", "callers 192", "images_per_s"), best),
        "cores": _at(found, "http", "callers 1", "server_cores"),
        "p99_ms": _at(found, "http", "open loop", "latency_ms", "p99"),
        "start_s": _at(found, "http", "start_s", "first_answer"),
        "shape_ms": _at(found, "http", "shapes", "first_ms", "slowest"),
        "fp16_lost": _points_lost(found, "fp16"),
        "bf16_lost": _points_lost(found, "bf16"),
        "training": _at(found, "training", "updates", "images_per_s"),
        "tests": _failed(found, "tests"),
        "faults": _failed(found, "faults"),
    }


def as_table(found: Found) -> str:
    """Markdown: machine and versions, the goals, what was cut off, and the tests that failed."""
    about = ", ".join(f"{name} {value}" for name, value in found["machine"].items() if value is not None)
    lines = [about, "", "| | measured | goal | |", "|---|---:|---:|---|"]
    measured = figures(found)
    for key, goal in GOALS.items():
        value = measured[key]
        if value is None:
            lines.append(f"| {goal.name} | | | not measured |")
            continue
        is_met = value <= goal.bound if goal.at_most else value >= goal.bound
        bound = f"{'at most' if goal.at_most else 'at least'} {goal.bound:g}"
        lines.append(f"| {goal.name} | {value:.4g} | {bound} | {'met' if is_met else 'missed'} |")
    parts = [part for part in found if part != "machine"]
    lines += ["", *(f"{part}: {found[part]['error']}" for part in parts if found[part].get("error"))]
    lines += [f"failed: {name}" for part in parts for name in found[part].get("failed", [])]
    return "\n".join(lines).rstrip() + "\n"


def _at(found: Found, *names: str) -> float | None:
    value: Any = found
    for name in names:
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return None if value is None else float(value)


def _best_rate(found: Found, form: str) -> float | None:
    """The highest over the batch sizes."""
    speed = found.get("model", {}).get("speed", {})
    return max((rate for name, rate in speed.items() if name.startswith(f"{form} x")), default=None)


def _ratio(top: float | None, bottom: float | None) -> float | None:
    return top / bottom if top is not None and bottom else None


def _percent(part: float | None, whole: float | None) -> float | None:
    share = _ratio(part, whole)
    return None if share is None else 100 * share


def _points_lost(found: Found, precision: str) -> float | None:
    exact, own = _at(found, "quality", "fp32", "AP"), _at(found, "quality", precision, "AP")
    return None if exact is None or own is None else 100 * abs(exact - own)


def _failed(found: Found, part: str) -> float | None:
    if _at(found, part, "passed") is None:
        return None
    return float(len(found[part]["failed"]))
