"""The command `frcnn bench model`, as a function for a typer app."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from model.arguments import RANDOM, complaint
from model.commands.errors import refuse_at_once, told_errors

if TYPE_CHECKING:
    from model.inference.bench import BenchResult


def bench_model_command(
    weights: Annotated[
        str, typer.Option(metavar="W", help="COCO_V1, bundled, a path, or random, which is as fast as any")
    ] = "random",
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="cpu, cuda or cuda:N; auto for a GPU if there is one")
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(metavar="P,P", help="Ours to measure, with commas between; by default all that the device has"),
    ] = "",
    size: Annotated[str, typer.Option(metavar="HxW", help="Height x width of the picture, px")] = "480x640",
    batch_size: Annotated[str, typer.Option(metavar="N,N", help="Images at a time, with commas between")] = "1",
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="How often each form runs; figures are medians")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables")] = False,
) -> None:
    """Compare with torchvision's detector, side by side in one run."""
    height, width = _numbers(size, "x", "--size", count=2)
    batch_sizes = _numbers(batch_size, ",", "--batch-size")
    refuse_at_once(complaint(weights=weights))
    from model.build import resolve_checkpoint
    from model.inference.bench import available_precisions, bench_model, lively
    from model.training.processes import find_device

    with told_errors():
        chosen = find_device(device)
        precisions = precision.split(",") if precision else available_precisions(chosen)
        checkpoint = resolve_checkpoint(weights)
        if weights == RANDOM:
            checkpoint = lively(checkpoint)
        console = Console(stderr=True)
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("measuring", total=rounds + 1)
            result = bench_model(
                checkpoint,
                device=chosen,
                precisions=precisions,
                size_hw=(height, width),
                batch_sizes=batch_sizes,
                rounds=rounds,
                advance=lambda: bar.advance(task),
            )
    if as_json:
        sys.stdout.write(json.dumps(result.as_json(), indent=2) + "\n")
    else:
        _print(result)


def _numbers(text: str, separator: str, option: str, count: int | None = None) -> list[int]:
    parts = text.split(separator)
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or (count is not None and len(parts) != count):
        raise typer.BadParameter(f"{text!r} is not numbers with {separator!r} between", param_hint=option)
    return [int(part) for part in parts]


def _print(result: BenchResult) -> None:
    height, width = result.size_hw
    about = f"{height}x{width} as {'x'.join(map(str, result.padded_hw))}, {result.gflop:.0f} GFLOP an image"
    table = Table(title=f"{about}, medians of {result.rounds} rounds")
    for name in ("", "batch", "s", "img/s", "x torchvision", "of peak", "MiB"):
        table.add_column(name, justify="left" if not name else "right")
    for form in result.forms:
        share = "" if form.share_of_peak is None else f"{form.share_of_peak:.0%}"
        memory = "" if form.peak_bytes is None else f"{form.peak_bytes / 2**20:,.0f}"
        table.add_row(
            form.name,
            str(form.batch_size),
            f"{form.seconds:.3f}",
            f"{form.images_per_s:.2f}",
            f"{form.ratio:.2f}",
            share,
            memory,
        )
    console = Console()
    console.print(table)
    staged = [form for form in result.forms if form.stages]
    if staged:
        stages = Table(title="stages of one image, shortest of the rounds, ms")
        stages.add_column("")
        for stage in staged[0].stages:
            stages.add_column(stage, justify="right")
        for form in staged:
            stages.add_row(form.name, *(f"{seconds * 1e3:.1f}" for seconds in form.stages.values()))
        console.print(stages)
    peaks = ", ".join(f"{name} {value / 1e3:.2f}" for name, value in result.peak_gflops.items())
    console.print(f"peak of a product of matrices, TFLOP/s: {peaks}")
    console.print(", ".join(f"{key} {value}" for key, value in result.machine.items()), soft_wrap=True)
