from __future__ import annotations

import io

from rich.console import Console

from service.loadtest.display import LiveDisplay
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


def test_nothing_is_drawn_elsewhere() -> None:
    assert shown(Console(file=io.StringIO(), force_terminal=False)) == ""
