from __future__ import annotations

import io

from rich.console import Console

from service.loadtest.display import LiveDisplay, print_run
from service.loadtest.fleet import Progress
from service.loadtest.plan import Plan, Target

PLAN = Plan(target=Target("h", 1, "/", tls=False), images=(b"",), rate=20.0, duration_s=60.0, warmup_s=30.0)


def shown(console: Console) -> str:
    with LiveDisplay(console, PLAN) as display:
        display.update(Progress(0, [0.1, 0.1, 0.3], failed=1, in_flight=9))
        display.update(Progress(0, [], failed=0, in_flight=3))
        display.update(Progress(1, [0.1], failed=1, in_flight=4))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_figures_of_all_processes_are_drawn_on_a_terminal() -> None:
    text = shown(Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None))
    assert "warming up" in text
    assert "20 arrivals/s" in text
    assert "4 answered, 7 in flight, 2 failed" in text
    assert "p50 100.0 ms" in text


def test_a_run_fits_a_terminal_of_80_columns() -> None:
    spread = dict.fromkeys(("mean", "min", "p50", "p75", "p90", "p95", "p99", "p99.9", "max"), 12345.678)
    run = {
        "plan": {"loop": "open", "rate_per_s": 20.0, "concurrency": None, "duration_s": 1, "warmup_s": 0, "images": 1},
        "throughput_per_s": 19.9, "requests": 20, "failed": 1, "failures": {"429 queue-full": 1},
        "latency_ms": spread, "stages_ms": {"inference": spread, "elsewhere": spread}, "batch_sizes": {"1": 19, "4": 1},
        "warnings": ["1 requests failed"],
    }  # fmt: skip
    console = Console(file=io.StringIO(), width=80)
    print_run(console, run)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [line for line in lines if "\N{HORIZONTAL ELLIPSIS}" in line] == []
    assert [line.split() for line in lines if "inference" in line] == [["inference", *["12346"] * 9]]
    assert "1: 95%, 4: 5%" in console.file.getvalue()


def test_before_the_first_answer_no_figure_is_made_up() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    with LiveDisplay(console, PLAN):
        pass
    assert isinstance(console.file, io.StringIO)
    assert "no answer yet" in console.file.getvalue()
    assert "nan" not in console.file.getvalue()


def test_nothing_is_drawn_elsewhere() -> None:
    assert shown(Console(file=io.StringIO(), force_terminal=False)) == ""
