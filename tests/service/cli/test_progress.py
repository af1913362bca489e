from __future__ import annotations

import io

import pytest
from rich.console import Console

from service.cli import progress
from service.cli.progress import ProgressBar, counting

LOSSES = {"loss_objectness": 0.1, "loss_rpn_box_reg": 0.2, "loss_classifier": 0.3, "loss_box_reg": 0.4}


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().replace("\r", "\n").splitlines()


def test_a_bar_keeps_count_pace_and_time_left_at_80_columns() -> None:
    console = terminal()
    with ProgressBar(123_456, 100_000, console=console) as bar:
        bar.updated(100_001, LOSSES, 0.01)
    last = [line for line in lines(console) if "100001/123456" in line][-1]
    assert "loss 1.000" in last
    assert "left" in last
    assert "\N{HORIZONTAL ELLIPSIS}" not in last


def test_results_that_go_to_a_file_reach_it(capsys: pytest.CaptureFixture[str]) -> None:
    with counting("detecting", 2, console=terminal()) as advance:
        print("a result")
        advance()
    assert capsys.readouterr().out == "a result\n"


def test_anything_is_counted() -> None:
    console = terminal()
    with counting("detecting", 3, console=console) as advance:
        advance()
        advance()
    assert any("detecting" in line and "2/3" in line and "left" in line for line in lines(console))


def test_without_a_terminal_there_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 1e9)
    with counting("detecting", 3, console=console) as advance:
        advance()
    with ProgressBar(30, console=console) as bar:  # by default each 20 iterations
        for iteration in range(1, 31):
            bar.updated(iteration, LOSSES, 0.01)
    assert [line.split()[1] for line in lines(console)] == ["20/30", "30/30"]
    monkeypatch.setattr(progress, "_LINE_EVERY_S", -1)
    with counting("detecting", 3, console=console) as advance:
        advance()
    assert capsys.readouterr().err.startswith("detecting 1/3, ")
    slow = Console(file=io.StringIO(), force_terminal=False)
    with ProgressBar(30, console=slow) as bar:  # where an iteration takes a minute
        bar.updated(1, LOSSES, 0.01)
    assert [line.split()[1] for line in lines(slow)] == ["1/30"]


def test_the_time_left() -> None:
    assert progress._pace(1, 11, 0.1) == "10.0/s, 1 s left"
    assert progress._pace(2, 102, 10) == "5.00 s each, 8 min left"
    assert progress._pace(1, 10_001, 2) == "2.00 s each, 6 h left"
