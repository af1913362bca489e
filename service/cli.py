"""`frcnn`: serve, detect, test under load, and look after weights. Exit codes: 0 done, 1 failed, 2 wrong usage.

torch takes seconds to import, so what needs it is imported by the commands themselves.
"""

from __future__ import annotations

import inspect
import json
import logging
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import SecretStr, ValidationError
from rich.console import Console
from rich.progress import track

from model.inference import commands as inference_commands
from model.training import commands as training_commands
from service import logs
from service.bench import commands as bench_commands
from service.image_files import IMAGE_SUFFIXES, image_files
from service.loadtest import commands as loadtest_commands
from service.settings import LogFormat, Precision, Settings, misspelt_variables

if TYPE_CHECKING:
    from service.detector import Detector

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
weights_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, fetch and inspect weights.")
app.add_typer(weights_app, name="weights")
bench_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure speed, side by side with others.")
app.add_typer(bench_app, name="bench")
bench_app.command("model")(inference_commands.bench_model_command)
bench_app.command("service")(bench_commands.bench_service_command)

logger = logging.getLogger(__name__)
_errors = Console(stderr=True, highlight=False, soft_wrap=True)
_FAILED, _USAGE = 1, 2

Weights = Annotated[str, typer.Option(help="COCO_V1, auto, bundled, random, or a .pth, .safetensors or .frcnn file.")]


@app.callback()
def frcnn() -> None:
    """Faster R-CNN as a service: POST an image, get boxes, labels and scores."""


def serve(**flags: Any) -> None:
    """Serve the detector over HTTP until SIGTERM or Ctrl-C.

    Every option can also be set in the environment as FRCNN_<NAME>; the option wins.
    """
    settings = _settings({name: value for name, value in flags.items() if value is not None})
    logs.configure(settings)
    for name in misspelt_variables():
        logger.warning("%s is set, and is no setting: is it misspelt?", name)

    from service.auth import KeysError
    from service.server import serve as serve_until_the_end
    from service.tracing import TracingError

    try:
        hopeless = serve_until_the_end(settings, _listen(settings.host, settings.port))
    except (KeysError, TracingError) as error:
        _fail(str(error), code=_USAGE)
    if hopeless is not None:
        _fail(hopeless)


def _listen(host: str, port: int) -> socket.socket:
    """Taken before anything is loaded, so that a port that is not free ends the process at once."""
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        _fail(f"cannot listen on {host}:{port}: {error.strerror or error}")
    shown = f"[{host}]" if ":" in host else host
    logger.info("listening on http://%s:%d (Ctrl-C ends it)", shown, listener.getsockname()[1])
    return listener


def _with_settings_as_options() -> inspect.Signature:
    """One option per setting, none with a default of its own: what is not given is left to `Settings`.

    Secrets have none: everybody on a machine sees the arguments of its processes.
    """
    parameters = []
    for name, field in Settings.model_fields.items():
        if field.annotation == SecretStr | None:
            continue
        plain = field.annotation if field.annotation in (int, float, bool, str, Precision, LogFormat) else str
        default = "" if field.default in (None, ()) else f" [default: {field.default}]"
        option = typer.Option(help=f"{field.description}{default}", show_default=False)
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[plain | None, option]
            )
        )
    return inspect.Signature(parameters)


serve.__signature__ = _with_settings_as_options()  # type: ignore[attr-defined]
app.command()(serve)


@app.command()
def detect(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")],
    weights: Weights = "auto",
    score_threshold: Annotated[float, typer.Option(min=0, max=1, help="Drop detections that score lower.")] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array instead of text.")] = False,
    draw: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the pictures with their boxes into this folder.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Keep only these classes, separated by commas.")] = None,
    max_detections: Annotated[int, typer.Option(min=1, max=100, help="Keep so many of the best of an image.")] = 100,
    device: Annotated[str, typer.Option(help="auto, cpu, or a GPU such as cuda:0.")] = "auto",
    precision: Annotated[Precision, typer.Option(help="Arithmetic of the network.")] = "auto",
) -> None:
    """Detect objects in image files, without a server."""
    logging.basicConfig(level="WARNING", format="%(levelname)s: %(message)s")
    settings = _settings({"weights": weights, "device": device, "precision": precision})
    from service import detect_files
    from service.schemas import DetectQuery

    try:
        files = image_files(images)
    except FileNotFoundError as error:
        _fail(str(error), code=_USAGE)
    if not files:
        _fail(f"no images in {', '.join(map(str, images))}: looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    query = DetectQuery(score_threshold=score_threshold, max_detections=max_detections, labels=labels)
    detector = _load_one(settings)
    with _reported():
        selection = query.selection(detector.info.categories)
    failed = 0
    documents = []
    results = detect_files.detect_files(detector, files, selection, max_pixels=settings.max_image_pixels)
    for result in track(
        results, "Detecting", total=len(files), console=_errors, disable=len(files) < 2, transient=True
    ):
        if result.error is not None:
            failed += 1
            _errors.print(f"{result.file.path}: {result.error}", markup=False)
        elif draw is not None:
            with _reported():
                detect_files.save_drawn(result, detector, draw)
        if as_json:
            documents.append(detect_files.as_json(result, query, detector))
        elif result.error is None:
            typer.echo(detect_files.as_text(result, detector))
    if as_json:
        typer.echo(json.dumps(documents, indent=2))
    if failed:
        _fail(f"{failed} of {len(files)} images could not be read")


@weights_app.command("list")
def list_weights() -> None:
    """What --weights takes, and what of it is here."""
    from model.weights import bundled_is_present, coco_is_cached, coco_weights

    state = "in the cache" if coco_is_cached() else "to be fetched once"
    typer.echo(f"COCO_V1   {state}: {coco_weights().url}")
    typer.echo(
        f"bundled   {'in the package' if bundled_is_present() else 'missing'}: red and white blood cells, platelets"
    )
    typer.echo("auto      COCO_V1 if it is cached or can be fetched soon, else bundled")
    typer.echo("random    untrained, for tests: what it finds means nothing")
    typer.echo("PATH      a .pth, .safetensors or .frcnn file of your own")


@weights_app.command("fetch")
def fetch_weights() -> None:
    """Fetch COCO_V1 into the cache, unless it is there."""
    from model.weights import fetch_coco

    with _reported():
        typer.echo(fetch_coco())


@weights_app.command("inspect")
def inspect_weights(
    weights: Annotated[str, typer.Argument(metavar="W", help="COCO_V1, bundled, random or a file.")],
) -> None:
    """Say what a file of weights holds, and whether it fits the model."""
    with _reported():
        from model.build import from_checkpoint, resolve_checkpoint

        checkpoint = resolve_checkpoint(weights)
        names = checkpoint.categories.objects()
        typer.echo(f"name        {checkpoint.name}")
        typer.echo(f"tensors     {len(checkpoint.state_dict)}")
        typer.echo(f"parameters  {sum(t.numel() for t in checkpoint.state_dict.values()):,}")
        typer.echo(
            f"classes     {len(names)}: {', '.join(list(names.values())[:8])}{', ...' if len(names) > 8 else ''}"
        )
        typer.echo(f"norm eps    {checkpoint.info.norm_eps}")
        typer.echo(f"arguments   {checkpoint.info.model_kwargs or 'the defaults'}")
        from_checkpoint(checkpoint)
        typer.echo("fits        yes")


app.command("train")(training_commands.train)
app.command("evaluate")(training_commands.evaluate_command)
app.command("sample")(training_commands.sample)
app.command("loadtest")(loadtest_commands.loadtest)
weights_app.command("pack")(training_commands.pack)


def main() -> None:
    """Entry point of `python -m service`."""
    app()


def _settings(overrides: dict[str, Any]) -> Settings:
    try:
        return Settings(**overrides)
    except ValidationError as error:
        for problem in error.errors():
            name = str(problem["loc"][0])
            flag = f"--{name.replace('_', '-')} (FRCNN_{name.upper()})"
            _errors.print(f"{flag}: {problem['msg']}, not {problem['input']!r}", markup=False)
        raise typer.Exit(_USAGE) from None


def _load_one(settings: Settings) -> Detector:
    with _reported():
        from service.detector import load_detectors

        return load_detectors(settings)[0]


@contextmanager
def _reported() -> Iterator[None]:
    """Turn an expected failure into its message and exit code 1."""
    from model.weights import WeightsError, WeightsUnavailableError
    from service.detector import DetectorError
    from service.errors import ServiceError

    try:
        yield
    except (WeightsError, WeightsUnavailableError, DetectorError, ServiceError, OSError) as error:
        _fail(str(error))


def _fail(message: str, *, code: int = _FAILED) -> NoReturn:
    _errors.print(f"frcnn: {message}", markup=False)
    sys.exit(code)
