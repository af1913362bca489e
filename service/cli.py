"""`frcnn`: serve, detect, test under load, and look after weights. Exit codes: 0 done, 1 failed, 2 wrong usage.

torch takes seconds to import, so what needs it is imported by the commands themselves.
"""

from __future__ import annotations

import errno
import inspect
import json
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, get_origin

import typer
from pydantic import SecretStr, ValidationError
from rich.console import Console
from rich.progress import track

from model.arguments import complaint
from model.commands import weights as weights_commands
from model.inference import commands as inference_commands
from model.training import commands as training_commands
from service import logs
from service.bench import commands as bench_commands
from service.image_files import IMAGE_SUFFIXES, ImageFile, image_files
from service.loadtest import commands as loadtest_commands
from service.settings import Precision, Settings, misspelt_variables

if TYPE_CHECKING:
    from service.detector import Detector

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
weights_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, fetch, inspect and pack weights.")
app.add_typer(weights_app, name="weights")
bench_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure speed, side by side with others.")
app.add_typer(bench_app, name="bench")
bench_app.command("model")(inference_commands.bench_model_command)
bench_app.command("service")(bench_commands.bench_service_command)

logger = logging.getLogger(__name__)
_errors = Console(stderr=True, highlight=False, soft_wrap=True)
_FAILED, _USAGE = 1, 2

_number = partial(typer.Option, metavar="N")  # typer would call it <int range>
# What stands for a setting's value in the help, where its type says too little.
_METAVARS = {
    "host": "ADDRESS", "weights": "W", "device": "DEVICE", "calibration_images": "DIR", "max_batch_size": "N|auto",
    "api_keys_file": "FILE", "cors_origins": "ORIGINS", "otlp_endpoint": "URL", "decode_threads": "N",
}  # fmt: skip

Weights = Annotated[
    str, typer.Option(metavar="W", help="COCO_V1, auto, bundled, random, or a .pth, .safetensors or .frcnn file.")
]


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"frcnn {metadata.version('faster-rcnn-service')}")
        raise typer.Exit


@app.callback()
def frcnn(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Tell the version.")
    ] = False,
) -> None:
    """Faster R-CNN as a service: POST an image, get boxes, labels and scores."""


def serve(**flags: Any) -> None:
    """Serve the detector over HTTP until SIGTERM or Ctrl-C.

    Every option can also be set in the environment as FRCNN_<NAME>; the option wins.
    """
    settings = _settings({name: value for name, value in flags.items() if value is not None})
    _refuse_read_only_tmp()
    logs.configure(settings)
    for name in misspelt_variables():
        logger.warning("%s is set, and is no setting: is it misspelt?", name)
    _refuse_missing_weights(settings)

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
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
        another = ". Choose another: --port 8001" if error.errno == errno.EADDRINUSE else ""
        _fail(f"cannot listen on {host}:{port}: {reason}{another}")
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
        choices_or_number = get_origin(field.annotation) is Literal or field.annotation in (int, float, bool)
        plain: Any = field.annotation if choices_or_number else str
        default = "" if field.default in (None, ()) else f" [default: {_in_words(field.default)}]"
        metavar = _METAVARS.get(name, "N" if plain in (int, float) else None)
        option = typer.Option(metavar=metavar, help=f"{field.description}{default}", show_default=False)
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[plain | None, option]
            )
        )
    return inspect.Signature(parameters)


def _in_words(default: object) -> str:
    """As somebody would write it on the command line."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"{default:g}" if isinstance(default, float) else str(default)


serve.__signature__ = _with_settings_as_options()  # type: ignore[attr-defined]
app.command()(serve)


@app.command()
def detect(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files, or folders of them.")],
    weights: Weights = "auto",
    score_threshold: Annotated[float, _number(min=0, max=1, help="Drop detections that score lower.")] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array instead of text.")] = False,
    draw: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the pictures with their boxes into this folder.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="L,L", help="Keep only these classes, separated by commas.")
    ] = None,
    max_detections: Annotated[int, _number(min=1, max=100, help="Keep so many of the best of an image.")] = 100,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, or a GPU such as cuda:0.")] = "auto",
    precision: Annotated[
        Precision,
        typer.Option(help="Arithmetic of the network; auto measures first which is fastest, for many images."),
    ] = "fp32",
) -> None:
    """Detect objects in image files, without a server."""
    logging.basicConfig(level="WARNING", format="%(levelname)s: %(message)s")
    # One image at a time: to measure how many are fastest would take longer than most folders.
    settings = _settings({"weights": weights, "device": device, "precision": precision, "max_batch_size": 1})
    files = _image_files(images)
    _refuse_missing_weights(settings)
    if draw is not None:
        _make_folder(draw)

    from service import detect_files
    from service.schemas import DetectQuery

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


app.command("train")(training_commands.train)
app.command("evaluate")(training_commands.evaluate_command)
app.command("sample")(training_commands.sample)
app.command("loadtest")(loadtest_commands.loadtest)
weights_app.command("list")(weights_commands.list_weights)
weights_app.command("fetch")(weights_commands.fetch_weights)
weights_app.command("inspect")(weights_commands.inspect_weights)
weights_app.command("pack")(weights_commands.pack)


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
            _errors.print(
                f"{flag}: {problem['msg'].removeprefix('Value error, ')}, not {problem['input']!r}", markup=False
            )
        raise typer.Exit(_USAGE) from None


def _refuse_missing_weights(settings: Settings) -> None:
    """Before torch is imported, which takes seconds."""
    if message := complaint(weights=settings.weights):
        _fail(message)


def _refuse_read_only_tmp() -> None:
    """Importing torch would end in a traceback."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        _fail("there is no folder for temporary files: let /tmp be written; docker run needs --tmpfs /tmp")


def _image_files(paths: list[Path]) -> list[ImageFile]:
    try:
        files = image_files(paths)
    except FileNotFoundError as error:
        _fail(str(error), code=_USAGE)
    if not files:
        _fail(f"no images in {', '.join(map(str, paths))}: looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    return files


def _make_folder(folder: Path) -> None:
    """Before anything is looked at, so that nobody waits for pictures that cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _fail(f"cannot write to {folder}: {error.strerror or error}", code=_USAGE)


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
