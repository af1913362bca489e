"""`frcnn`: serve, detect, train, test under load, and look after weights."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated, Any

import typer

from service.cli import bench, detect, errors, evaluate, loadtest, sample, serve, train, weights
from service.devices.cores import bound_spinning

_group: dict[str, Any] = {"cls": errors.Commands, "no_args_is_help": True, "rich_markup_mode": None}
app = typer.Typer(
    **_group,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
weights_app = typer.Typer(**_group, help="List, fetch, inspect and pack weights.")
bench_app = typer.Typer(**_group, help="Measure speed, side by side with others.")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"frcnn {metadata.version('faster-rcnn-service')}")
        raise typer.Exit


@app.callback()
def frcnn(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Faster R-CNN as a service: POST an image, get boxes, labels and scores.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (143 by SIGTERM).
    """


app.command("serve")(serve.serve)
app.command("detect")(detect.detect)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("sample")(sample.sample)
app.add_typer(weights_app, name="weights")
weights_app.command("list")(weights.list_weights)
weights_app.command("fetch")(weights.fetch_weights)
weights_app.command("inspect")(weights.inspect_weights)
weights_app.command("pack")(weights.pack)
app.add_typer(bench_app, name="bench")
bench_app.command("model")(bench.bench_model)
bench_app.command("service")(bench.bench_service)
app.command("loadtest")(loadtest.loadtest)


def main() -> None:
    """Run the command that the arguments name."""
    bound_spinning()
    app()
