"""`frcnn evaluate`: average precision by COCO's rules."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from model.weights.names import argument_error
from service.cli.errors import fail_if, say, say_if_few, stdout
from service.cli.options import DATA, IMAGES, ClassNames, Device, Json, Model, folder, number, require_folder
from service.cli.progress import counting
from service.settings import Precision, words

if TYPE_CHECKING:
    from model.evaluation import average_precision


def evaluate(
    weights: Annotated[
        str, typer.Option(metavar="W", help="COCO_V1, bundled, auto for the first there is, a path, or random")
    ],
    data: Annotated[str, DATA],
    split: Annotated[str, typer.Option(metavar="NAME", help="Measure on this split")] = "val",
    images: Annotated[Path | None, IMAGES] = None,
    precision: Annotated[
        Precision, typer.Option(help="Of the network's arithmetic, as in serving; auto is the fastest")
    ] = "fp32",
    calibration_images: Annotated[
        Path | None, folder(help="Folder of typical pictures that int8 is fitted to; by default generated ones")
    ] = None,
    as_json: Json = False,
    plot: Annotated[Path | None, folder(help="Write precision-recall curves and example pictures here")] = None,
    min_size: Annotated[int | None, number(min=32, help="Shorter side, px; by default the weights' own")] = None,
    max_size: Annotated[int | None, number(min=32, help="Longer side, px; by default the weights' own")] = None,
    model: Model = None,
    class_names: ClassNames = None,
    device: Device = "auto",
) -> None:
    """Measure a detector's average precision by COCO's rules.

    Example: frcnn evaluate --weights out/best.safetensors --data photos/coco.json --split all
    """
    for named in (images, calibration_images):
        require_folder(named)
    fail_if(argument_error(weights=weights, data=data))
    from model.architectures import architecture_named
    from model.build import from_checkpoint, resolve_checkpoint
    from model.data.coco import is_named_for
    from model.data.sources import open_data
    from model.evaluation.average_precision import check_evaluator, detect_all
    from model.evaluation.average_precision import evaluate as measure
    from model.evaluation.plots import plot_all
    from model.inference.build import serving_model
    from model.inference.calibration import calibration_pictures
    from model.inference.precision import check_precision
    from model.training.processes import find_device, joined_processes

    check_precision(precision, find_device(device))
    check_evaluator()  # before pictures are looked at for minutes
    checkpoint = resolve_checkpoint(weights, architecture_named(model), tell=say).named(words(class_names or ""))
    chosen: dict[str, Any] = {"min_size": min_size, "max_size": max_size}
    detector = from_checkpoint(checkpoint, **{key: size for key, size in chosen.items() if size is not None})
    whole = is_named_for(Path(data), split)
    measured, report = open_data(data, split, keep_empty=True, whole=whole, images=images)
    for line in report.lines():
        say(line)
    say_if_few(len(measured))
    with joined_processes(device) as processes, counting("detecting", len(measured)) as advance:
        served = serving_model(
            detector,
            device=processes.device,
            precision=precision,
            calibration=partial(calibration_pictures, calibration_images) if calibration_images else None,
        )
        found = detect_all(served.detect, measured, advance=advance)
    metrics = measure(measured, found, checkpoint.categories)
    if as_json:
        about = {"model": checkpoint.architecture.name, "weights": checkpoint.name, "precision": served.precision}
        document = about | {"data": data, "split": split} | metrics.as_json() | {"left_out": report.counts()}
        typer.echo(json.dumps(document, indent=2))
    else:
        stdout.print(metrics_table(metrics, title=f"{checkpoint.name} on {report.source}"))
    if plot is not None:
        written = plot_all(plot, metrics, measured, found, checkpoint.categories)
        say(f"wrote {len(written)} pictures to {plot}")


def metrics_table(metrics: average_precision.Metrics, *, title: str) -> Table:
    """A table with a row for all boxes, one for each class and one for each of COCO's sizes."""
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


def _cells(precision: average_precision.Precision) -> list[str]:
    values = (precision.ap, precision.ap50, precision.ap75, precision.recall)
    return ["-" if value is None else f"{value:.3f}" for value in values] + [str(precision.boxes)]
