from __future__ import annotations

from rich.console import Console

from model.evaluation.average_precision import evaluate
from model.weights.categories import Categories
from service.cli.evaluate import metrics_table
from tests.support.labelled import TWO, Listed, found


def test_a_class_may_be_called_like_markup() -> None:
    data = Listed(TWO[:1], [1])
    data.categories = Categories.of_objects(["[/b] [red]cell"])
    console = Console(width=80)
    with console.capture() as printed:
        console.print(metrics_table(evaluate(data, found(TWO[:1], [1], [0.9])), title="[/i]"))
    assert "[/b] [red]cell" in printed.get()
    assert "[/i]" in printed.get()


def test_the_table_has_a_row_for_all_each_class_and_each_size() -> None:
    data = Listed(TWO, [1, 2])
    console = Console(width=80)
    with console.capture() as printed:
        console.print(metrics_table(evaluate(data, found(TWO[:1], [1], [0.9])), title="t"))
    rows = [line.split() for line in printed.get().splitlines() if "│" in line]
    cells = {words[1]: [word for word in words[2:] if word != "│"] for words in rows}
    assert list(cells) == ["all", "cat", "dog", "small", "medium", "large"]
    assert cells["cat"] == ["1.000"] * 4 + ["1"]
    assert cells["dog"] == ["0.000"] * 4 + ["1"]
    assert cells["medium"] == ["-"] * 4 + ["0"]
