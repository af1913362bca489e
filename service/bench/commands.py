"""The command `frcnn bench service`, as a function for a typer app."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

if TYPE_CHECKING:
    from service.bench.measure import ServiceResult


def bench_service_command(
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; auto for a GPU if there is one")] = "auto",
    precision: Annotated[str, typer.Option(help="Of ours; torchvision's has float32")] = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured; figures are medians")] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="How long each is measured each time")] = 15,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables")] = False,
) -> None:
    """Compare the service with the bare model and with plain FastAPI around torchvision, side by side in one run."""
    from service.bench.measure import BenchError, bench_service
    from service.bench.processes import ServerLostError
    from service.detector import LOAD_ERRORS

    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        with Progress(console=errors, transient=True) as bar:
            task = bar.add_task("measuring", total=rounds + 1)
            result = bench_service(
                device=device,
                precision=precision,
                rounds=rounds,
                seconds=seconds,
                advance=lambda: bar.advance(task),
            )
    except (BenchError, ServerLostError, *LOAD_ERRORS) as error:
        errors.print(f"frcnn: {error}", markup=False)
        raise typer.Exit(1) from None
    if as_json:
        sys.stdout.write(json.dumps(result.as_json(), indent=2) + "\n")
    else:
        _print(result)


def _print(result: ServiceResult) -> None:
    about = f"{result.precision}, {result.batch_size} at a time, medians of {result.rounds} rounds"
    table = Table("", "img/s", "p99 ms", "", title=about)
    table.add_row("bare model", f"{result.bare_per_s:.2f}", "", "")
    share = f"{result.share_of_bare:.0%} of the bare model, {result.times_plain:.1f} times plain"
    table.add_row("ours over HTTP", f"{result.ours_per_s:.2f}", f"{result.ours_p99_ms:.0f}", share)
    table.add_row("FastAPI + torchvision", f"{result.plain_per_s:.2f}", f"{result.plain_p99_ms:.0f}", "")
    table.add_row("ours, a model that does nothing", f"{result.nothing_per_s:.0f}", f"{result.nothing_p99_ms:.0f}", "")
    console = Console()
    console.print(table)
    console.print(f"a mix of {result.shapes} shapes: {result.shapes_batch_size:.1f} images to a batch")
