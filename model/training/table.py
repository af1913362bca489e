"""An evaluation as a table for the terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from model.training.evaluation import Metrics, Precision


def metrics_table(metrics: Metrics, *, title: str) -> Table:
    """A row for all boxes, one for each class and one for each of COCO's sizes."""
    table = Table(title=escape(title))
    table.add_column("")
    for name in ("AP", "AP50", "AP75", "AR", "boxes"):
        table.add_column(name, justify="right")
    table.add_row("all", *_cells(metrics.overall), style="bold", end_section=True)
    for name, precision in metrics.by_class.items():
        table.add_row(escape(name), *_cells(precision))
    table.add_section()
    for name, precision in metrics.by_size.items():
        table.add_row(name, *_cells(precision))
    return table


def _cells(precision: Precision) -> list[str]:
    values = (precision.ap, precision.ap50, precision.ap75, precision.recall)
    return ["-" if value is None else f"{value:.3f}" for value in values] + [str(precision.boxes)]
