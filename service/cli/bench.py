"""`frcnn bench model | service`: speed, side by side with others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from model.weights.names import RANDOM, argument_error
from service.cli.errors import fail, fail_if, stdout
from service.cli.options import Device, Json, Model, number
from service.cli.progress import counting
from service.settings import MODELS

if TYPE_CHECKING:
    from model.bench.measure import BenchResult
    from service.bench.measure import ServiceResult

Rounds = Annotated[int, number(min=1, help="How often each is measured; figures are medians")]


def bench_model(
    weights: Annotated[
        str, typer.Option(metavar="W", help="COCO_V1, bundled, a path, or random, which is as fast as any")
    ] = "random",
    model: Model = None,
    device: Device = "auto",
    precision: Annotated[
        str,
        typer.Option(metavar="P,P", help="Ours to measure, with commas between; by default all that the device has"),
    ] = "",
    size: Annotated[str, typer.Option(metavar="HxW", help="Height x width of the picture, px")] = "480x640",
    batch_size: Annotated[str, typer.Option(metavar="N,N", help="Images at a time, with commas between")] = "1",
    rounds: Rounds = 5,
    as_json: Json = False,
) -> None:
    """Compare with torchvision's detector, side by side in one run.

    Example: frcnn bench model --precision fp32,bf16 --batch-size 1,4
    """
    height, width = _numbers(size, "x", "--size", count=2)
    batch_sizes = _numbers(batch_size, ",", "--batch-size")
    fail_if(argument_error(weights=weights))
    from model.architectures import architecture_named
    from model.bench.measure import available_backends, available_precisions, lively
    from model.bench.measure import bench_model as measure
    from model.build import resolve_checkpoint
    from model.training.processes import find_device

    chosen = find_device(device)
    precisions = precision.split(",") if precision else available_precisions(chosen)
    checkpoint = resolve_checkpoint(weights, architecture_named(model))
    if weights == RANDOM:
        checkpoint = lively(checkpoint)
    with counting("measuring", rounds + 1) as advance:
        result = measure(
            checkpoint,
            device=chosen,
            precisions=precisions,
            backends=available_backends(chosen),
            size_hw=(height, width),
            batch_sizes=batch_sizes,
            rounds=rounds,
            advance=advance,
        )
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=2))
    else:
        _print_model(result)


def _numbers(text: str, separator: str, option: str, count: int | None = None) -> list[int]:
    parts = text.split(separator)
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or (count is not None and len(parts) != count):
        raise typer.BadParameter(f"{text!r} is not numbers with {separator!r} between", param_hint=option)
    return [int(part) for part in parts]


def _print_model(result: BenchResult) -> None:
    height, width = result.size_hw
    about = (
        f"{result.model}, {height}x{width} as {'x'.join(map(str, result.padded_hw))}, {result.gflop:.0f} GFLOP an image"
    )
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
    stdout.print(table)
    staged = [form for form in result.forms if form.stages]
    if staged:
        stages = Table(title="stages of one image, shortest of the rounds, ms")
        stages.add_column("")
        for stage in staged[0].stages:
            stages.add_column(stage, justify="right")
        for form in staged:
            stages.add_row(form.name, *(f"{seconds * 1e3:.1f}" for seconds in form.stages.values()))
        stdout.print(stages)
    peaks = ", ".join(f"{name} {value / 1e3:.2f}" for name, value in result.peak_gflops.items())
    stdout.print(f"peak of a product of matrices, TFLOP/s: {peaks}")
    stdout.print(", ".join(f"{key} {value}" for key, value in result.machine.items()), soft_wrap=True)


def bench_service(
    model: Model = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(metavar="P", help="Of ours; torchvision's has float32")] = "auto",
    rounds: Rounds = 3,
    seconds: Annotated[float, number(min=1, help="How long each is measured each time")] = 15,
    as_json: Json = False,
) -> None:
    """Compare the service with the bare model and with plain FastAPI around torchvision, side by side in one run.

    Example: frcnn bench service --precision bf16 --seconds 5
    """
    from service.bench.measure import BenchError
    from service.bench.measure import bench_service as measure
    from service.bench.processes import ServerLostError

    try:
        with counting("measuring", rounds + 1) as advance:
            result = measure(
                model=model or MODELS[0],
                device=device,
                precision=precision,
                rounds=rounds,
                seconds=seconds,
                advance=advance,
            )
    except (BenchError, ServerLostError) as error:
        fail(str(error))
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=2))
    else:
        _print_service(result)


def _print_service(result: ServiceResult) -> None:
    about = f"{result.precision}, {result.batch_size} at a time, medians of {result.rounds} rounds"
    table = Table("", "img/s", "p99 ms", "", title=about)
    table.add_row("bare model", f"{result.bare_per_s:.2f}", "", "")
    share = f"{result.share_of_bare:.0%} of the bare model, {result.times_plain:.1f} times plain"
    table.add_row("ours over HTTP", f"{result.ours_per_s:.2f}", _whole(result.ours_p99_ms), share)
    table.add_row("FastAPI + torchvision", f"{result.plain_per_s:.2f}", _whole(result.plain_p99_ms), "")
    table.add_row("ours, a model that does nothing", f"{result.nothing_per_s:.0f}", _whole(result.nothing_p99_ms), "")
    stdout.print(table)
    stdout.print(f"a mix of {result.shapes} shapes: {result.shapes_batch_size:.1f} images to a batch")


def _whole(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.0f}"
