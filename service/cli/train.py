"""`frcnn train`: a detector of your own. Its options are those of the run, and one for each of `TrainSettings`."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
import types
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from model.training.settings import TrainSettings
from model.weights.names import argument_error
from service.cli.errors import INTERRUPTED, fail, fail_if, say, say_if_few, stderr, usage_errors
from service.cli.options import DATA, IMAGES, Device, Model, folder, number, of_setting, require_folder

if TYPE_CHECKING:
    from model.data.samples import DetectionData
    from model.training.run import EarlierRun, RunRequest
    from model.weights.checkpoints import Checkpoint

_EPOCHS = 20
_RATE_PER_IMAGE = 0.00125  # 0.02 for batches of 16, as usual for this detector

Split = Annotated[str, typer.Option(metavar="NAME", help="Learn from this split")]


def train(
    *,
    data: Annotated[str, DATA],
    output: Annotated[Path, folder(help="Folder for best.safetensors, the log and the state to resume from")],
    epochs: Annotated[int | None, number(min=1, help=f"Passes over the data; by default {_EPOCHS}")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was cut off")] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Resume with other settings than the run was begun with")
    ] = False,
    weights: Annotated[
        str,
        typer.Option(metavar="W", help="To begin with: COCO_V1, bundled, a path, none, or auto for the first there is"),
    ] = "auto",
    split: Split = "train",
    images: Annotated[Path | None, IMAGES] = None,
    validation_data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Data to choose the best weights on, where they are others than --data"),
    ] = None,
    validation_images: Annotated[Path | None, folder(help="Their folder of images; by default --images")] = None,
    validation_split: Annotated[
        str, typer.Option(metavar="NAME", help="Choose the best weights on this split; none for the last")
    ] = "val",
    keep_empty: Annotated[bool, typer.Option("--keep-empty", help="Learn from images without boxes too")] = False,
    norm: Annotated[
        Literal["auto", "frozen", "live"], typer.Option(help="Batch norm; auto is live from scratch, else frozen")
    ] = "auto",
    model: Model = None,
    device: Device = "auto",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write scalars for TensorBoard too")] = False,
    **flags: Any,
) -> None:
    """Train a detector on your own images.

    Ctrl-C and SIGTERM save the state, from which --resume continues to the same numbers.

    Example: frcnn train --data photos/coco.json --output out && frcnn serve --weights out/best.safetensors
    """
    given = {name: value for name, value in flags.items() if value is not None}
    for named in (images, validation_images):
        require_folder(named)
    # A run's state has the weights that it began with.
    fail_if(argument_error(weights=None if resume else weights, data=data) or argument_error(data=validation_data))
    is_first = os.environ.get("RANK", "0") == "0"
    stderr.quiet = not is_first
    from model.architectures import FASTERRCNN_RESNET50_FPN, architecture_named
    from model.training.processes import find_device, has_bfloat16
    from model.training.run import RunRequest, check_folder, read_earlier, read_start

    computes_on = find_device(device)  # fails before anything is fetched or read
    check_folder(output, resume=resume)
    wanted = architecture_named(model)
    earlier = read_earlier(output, weights, wanted) if resume else None
    begin = read_start(weights, say, wanted) if earlier is None else earlier.begin
    if begin is None and (norm == "frozen" or given.get("trainable_layers", 5) != 5):
        raise typer.BadParameter("without weights to begin with, batch norm is live and all layers learn")
    whole = validation_data is not None  # no part of the data is then held out
    train_data = _opened(data, split, keep_empty=keep_empty, seed=given.get("seed", 0), whole=whole, images=images)
    others, names = validation_images or images, train_data.categories
    validation = None
    if validation_split != "none":
        source = validation_data or data
        validation = _opened(source, validation_split, categories=names, keep_empty=True, whole=whole, images=others)
        if not resume:
            say_if_few(len(validation), remedy="" if validation_data else "; give more by --validation-data")
    native = "bf16" if has_bfloat16(computes_on) else "fp32"
    derived = _derived(given, begin, earlier, images=len(train_data), epochs=epochs, native=native)
    with usage_errors():
        live_norm = norm == "live" or (norm == "auto" and begin is None)
        settings = TrainSettings(**(derived | given | {"live_norm": live_norm}))
    request = RunRequest(
        data=train_data,
        validation=validation,
        begin=begin,
        settings=settings,
        folder=output,
        resume=resume,
        allow_changes=allow_changes,
        tensorboard=tensorboard,
        architecture=earlier.architecture if earlier is not None else wanted or FASTERRCNN_RESNET50_FPN,
    )
    _run(request, device)


def _run(request: RunRequest, device: str) -> None:
    """Train, with a bar; an interrupted run ends with the command that resumes it."""
    from model.training.interruption import TrainingInterrupted
    from model.training.processes import joined_processes
    from model.training.run import run_training
    from model.training.snapshot import finished_iterations
    from service.cli.progress import ProgressBar

    iterations = request.settings.iterations
    done = finished_iterations(request.folder) if request.resume else 0
    if 0 < done < iterations:
        say(f"resuming after iteration {done} of {iterations}")
    try:
        with joined_processes(device) as processes, ProgressBar(iterations, done) as bar:
            run_training(request, processes, say, [bar])
    except TrainingInterrupted as interrupted:
        fail(_how_to_resume(interrupted.iteration, iterations), code=128 + interrupted.number)
    except KeyboardInterrupt:  # the second one, or before training began
        fail(_how_to_resume(finished_iterations(request.folder), iterations), code=INTERRUPTED)


def _how_to_resume(iteration: int, iterations: int) -> str:
    if iteration == 0:
        return "interrupted before anything was saved. Run the command again"
    command = shlex.join(["frcnn", *(word for word in sys.argv[1:] if word != "--resume"), "--resume"])
    return f"interrupted at iteration {iteration} of {iterations}. Continue: {command}"


def _opened(source: str, split: str, **how: Any) -> DetectionData:
    """The images of a split; says what was left out of them."""
    from model.data.sources import open_data

    data, report = open_data(source, split, **how)
    for line in report.lines():
        say(line)
    return data


def _derived(
    given: dict[str, Any],
    begin: Checkpoint | None,
    earlier: EarlierRun | None,
    *,
    images: int,
    epochs: int | None,
    native: str,
) -> dict[str, Any]:
    """The defaults of settings that depend on others, on the data, the device or the weights to begin with.

    Args:
        native: the precision that suits the device. A run that is resumed, on another device maybe, keeps its own.
    """
    batch_size = given.get("batch_size", TrainSettings.batch_size)
    total = given.get("iterations") or max(1, round((epochs or _EPOCHS) * images / batch_size))
    warmup = None
    if earlier is not None:  # what depends on the length of the run stays, unless it is given
        total = total if "iterations" in given or epochs else earlier.settings["iterations"]
        warmup = earlier.settings["warmup"]
    kwargs = {} if begin is None else begin.info.model_kwargs
    sizes = kwargs if earlier is None else earlier.settings
    return {
        "iterations": total,
        "learning_rate": _RATE_PER_IMAGE * batch_size,
        "warmup": total // 20 if warmup is None else warmup,
        "trainable_layers": 5 if begin is None else 3,
        "precision": native if earlier is None else earlier.settings["precision"],
        "min_size": sizes.get("min_size", TrainSettings.min_size),
        "max_size": sizes.get("max_size", TrainSettings.max_size),
        "evaluate_every": max(1, total // 10),
    }


def _with_settings() -> inspect.Signature:
    """The options of `train`, and one for each setting that has a help."""
    named = [p for p in inspect.signature(train, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    hints = get_type_hints(TrainSettings)
    settings = [
        of_setting(
            one.name,
            _without_none(hints[one.name]),
            one.metadata["about"],
            default=None if one.metadata["derived"] or one.default is MISSING else one.default,
            least=one.metadata["least"],
            most=one.metadata["most"],
        )
        for one in fields(TrainSettings)
        if "about" in one.metadata
    ]
    return inspect.Signature([*named, *settings])


def _without_none(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is types.UnionType else hint


train.__signature__ = _with_settings()  # type: ignore[attr-defined]
