"""The commands `frcnn train`, `frcnn evaluate` and `frcnn sample`, as functions for a typer app.

What a user can put right ends with exit code 1 and a message, never with a trace; a wrong flag with 2.
torch takes seconds to import, so what needs it is imported by the commands themselves.
"""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from model.arguments import complaint
from model.commands.errors import refuse_at_once, told_errors, told_usage

if TYPE_CHECKING:
    from model.training.data import DetectionData
    from model.training.report import Report


class Schedule(StrEnum):
    cosine = "cosine"
    onecycle = "onecycle"
    step = "step"


class Norm(StrEnum):
    auto = "auto"
    frozen = "frozen"
    live = "live"


class Flips(StrEnum):
    none = "none"
    horizontal = "horizontal"
    both = "both"
    dihedral = "dihedral"


class BoxLoss(StrEnum):
    smooth_l1 = "smooth_l1"
    giou = "giou"


class TrainPrecision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"


class Precision(StrEnum):
    auto = "auto"
    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"
    fp16 = "fp16"
    int8 = "int8"


_number = partial(typer.Option, metavar="N")  # typer would call it <int range>
_folder = partial(typer.Option, metavar="DIR")
_weights = partial(typer.Option, metavar="W")
_data = partial(typer.Option, metavar="DATA")
_split = partial(typer.Option, metavar="NAME")
_device = partial(typer.Option, metavar="DEVICE", help="auto, cpu, cuda or cuda:N")
_DATA_HELP = "A Pascal VOC folder, a folder with COCO JSON and images, or: synthetic"
_IMAGES_HELP = "Folder of a COCO JSON's images; by default the JSON's own, or images in it"


def train(
    data: Annotated[str, _data(help=_DATA_HELP)],
    output: Annotated[Path, _folder(help="Folder for best.safetensors, the log and the state to resume from")],
    epochs: Annotated[int | None, _number(min=1, help="Passes over the data; by default 20")] = None,
    iterations: Annotated[int | None, _number(min=1, help="Updates of the weights; wins over --epochs")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was cut off")] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Resume with other settings than the run was begun with")
    ] = False,
    weights: Annotated[
        str, _weights(help="To begin with: COCO_V1, bundled, a path, none, or auto for the first there is")
    ] = "auto",
    split: Annotated[str, _split(help="Learn from this split")] = "train",
    images: Annotated[Path | None, _folder(help=_IMAGES_HELP)] = None,
    validation_data: Annotated[
        str | None, _data(help="Data to choose the best weights on, where they are others than --data")
    ] = None,
    validation_images: Annotated[Path | None, _folder(help="Their folder of images; by default --images")] = None,
    validation_split: Annotated[str, _split(help="Choose the best weights on this split; none for the last")] = "val",
    keep_empty: Annotated[bool, typer.Option("--keep-empty", help="Learn from images without boxes too")] = False,
    batch_size: Annotated[int, _number(min=1, help="Images an update, over all processes")] = 8,
    accumulate: Annotated[int, _number(min=1, help="Compute a batch in so many parts, to save memory")] = 1,
    learning_rate: Annotated[
        float | None, _number(min=0.0, help="Its peak; by default 0.00125 for each image of a batch")
    ] = None,
    momentum: Annotated[float, _number(min=0.0, max=1.0, help="Of the updates")] = 0.9,
    weight_decay: Annotated[float, _number(min=0.0, help="Of all weights but norms and biases")] = 1e-4,
    schedule: Annotated[Schedule, typer.Option(help="How the rate falls")] = Schedule.cosine,
    warmup: Annotated[int | None, _number(min=0, help="Iterations of linear rise; by default 5 %")] = None,
    clip_norm: Annotated[float, _number(min=0.0, help="Bound on the gradients' norm; 0 for none")] = 5.0,
    norm: Annotated[Norm, typer.Option(help="Batch norm; auto is live from scratch, else frozen")] = Norm.auto,
    trainable_layers: Annotated[
        int | None, _number(min=0, max=5, help="Stages of the body that learn; by default 3, from scratch 5")
    ] = None,
    average_decay: Annotated[float, _number(min=0.0, max=1.0, help="Of the weights' moving average")] = 0.998,
    norm_images: Annotated[
        int,
        _number(min=0, help="Training images to measure live batch norm of the average on; 0: average it"),
    ] = 200,
    precision: Annotated[TrainPrecision, typer.Option(help="Of the network's arithmetic")] = TrainPrecision.bf16,
    min_size: Annotated[int | None, _number(min=32, help="Shorter side, px; by default the weights', or 800")] = None,
    max_size: Annotated[int | None, _number(min=32, help="Longer side, px; by default the weights', or 1333")] = None,
    scale_jitter: Annotated[float, _number(min=0.0, max=0.9, help="Sizes vary by this share")] = 0.1,
    flips: Annotated[Flips, typer.Option(help="dihedral adds quarter turns")] = Flips.horizontal,
    crop: Annotated[float, _number(min=0.1, max=1.0, help="Learn from parts with this share of each side")] = 1.0,
    whole_from: Annotated[float, _number(min=0.0, max=1.0, help="Crop no more after this share of the run")] = 0.7,
    colour: Annotated[float, _number(min=0.0, max=0.9, help="Brightness and colours vary by this share")] = 0.0,
    rpn_samples: Annotated[int, _number(min=1, help="Anchors an image in the losses")] = 256,
    roi_samples: Annotated[int, _number(min=1, help="Proposals an image in the losses")] = 512,
    roi_positive_fraction: Annotated[
        float, _number(min=0.0, max=1.0, help="Most of them that may lie on an object, as a share")
    ] = 0.25,
    box_loss: Annotated[
        BoxLoss, typer.Option(help="Of the final boxes; giou is nearer to what AP measures")
    ] = BoxLoss.smooth_l1,
    class_balance: Annotated[
        float, _number(min=0.0, max=1.0, help="Rare classes weigh more, as by 0.5; with 1 each as much as any other")
    ] = 0.0,
    proposals: Annotated[int, _number(min=1, help="That the RPN hands on in training")] = 2000,
    detection_proposals: Annotated[
        int | None, _number(min=1, help="That it hands on when the result detects; by default the weights', or 1000")
    ] = None,
    box_vote_thresh: Annotated[
        float | None,
        _number(
            min=0.0,
            max=1.0,
            help="When it detects, a box moves to the mean of the candidates that overlap it by this IoU (say 0.8); 0: "
            "none does; by default as the weights have it",
        ),
    ] = None,
    evaluate_every: Annotated[int | None, _number(min=0, help="Iterations; by default a tenth of the run")] = None,
    save_every: Annotated[int, _number(min=0, help="Iterations between states to resume from; 0: the end")] = 200,
    seed: Annotated[int, _number(min=0, help="Of all that is random")] = 0,
    device: Annotated[str, _device()] = "auto",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write scalars for TensorBoard too")] = False,
) -> None:
    """Train a detector on your own images.

    Serve it with: frcnn serve --weights OUTPUT/best.safetensors
    """
    begun = None if resume else weights  # a run's state has the weights that it began with
    refuse_at_once(complaint(weights=begun, data=data) or complaint(data=validation_data))
    from model.training.augmentation import Augmentation
    from model.training.processes import find_device, joined_processes
    from model.training.run import RunRequest, read_earlier, read_start, run_training
    from model.training.settings import TrainSettings
    from model.training.sources import open_data

    with told_errors():
        console = Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")
        find_device(device)  # told before anything is fetched or read
        earlier = read_earlier(output, weights) if resume else None
        begin = read_start(weights, console) if earlier is None else earlier.begin
        if begin is None and (norm is Norm.frozen or trainable_layers not in {None, 5}):
            raise typer.BadParameter("without weights to begin with, batch norm is live and all layers learn")
        whole = validation_data is not None  # no part of the data is then held out
        learned, report = open_data(data, split, keep_empty=keep_empty, seed=seed, whole=whole, images=images)
        tell(report, console)
        judge: DetectionData | None = None
        if validation_split != "none":
            judge, report = open_data(
                validation_data or data,
                validation_split,
                categories=learned.categories,
                keep_empty=True,
                whole=whole,
                images=validation_images or images,
            )
            tell(report, console)
        sizes = begin.info.model_kwargs if begin is not None else {}
        total = iterations or max(1, round((epochs or 20) * len(learned) / batch_size))
        if earlier is not None:  # what depends on the length of the run stays, unless it is given
            total = total if iterations or epochs else earlier.settings["iterations"]
            warmup = earlier.settings["warmup"] if warmup is None else warmup
        is_live = norm is Norm.live or (norm is Norm.auto and begin is None)
        with told_usage():
            settings = TrainSettings(
                iterations=total,
                batch_size=batch_size,
                accumulate=accumulate,
                learning_rate=0.00125 * batch_size if learning_rate is None else learning_rate,
                momentum=momentum,
                weight_decay=weight_decay,
                schedule=schedule.value,
                warmup=total // 20 if warmup is None else warmup,
                clip_norm=clip_norm,
                live_norm=is_live,
                trainable_layers=(5 if begin is None else 3) if trainable_layers is None else trainable_layers,
                average_decay=average_decay,
                norm_images=norm_images,
                precision=precision.value,
                min_size=min_size or sizes.get("min_size", 800),
                max_size=max_size or sizes.get("max_size", 1333),
                scale_jitter=scale_jitter,
                augmentation=Augmentation(flips=flips.value, crop=crop, colour=colour),
                whole_from=whole_from,
                rpn_samples=rpn_samples,
                roi_samples=roi_samples,
                roi_positive_fraction=roi_positive_fraction,
                box_loss=box_loss.value,
                class_balance=class_balance,
                proposals=proposals,
                detection_proposals=detection_proposals,
                box_vote_thresh=box_vote_thresh,
                evaluate_every=max(1, total // 10) if evaluate_every is None else evaluate_every,
                save_every=save_every,
                seed=seed,
            )
        request = RunRequest(
            data=learned,
            validation=judge,
            begin=begin,
            settings=settings,
            folder=output,
            resume=resume,
            allow_changes=allow_changes,
            tensorboard=tensorboard,
        )
        with joined_processes(device) as processes:
            run_training(request, processes, console)


def evaluate_command(
    weights: Annotated[str, _weights(help="COCO_V1, bundled, auto for the first there is, a path, or random")],
    data: Annotated[str, _data(help=_DATA_HELP)],
    split: Annotated[str, _split(help="Measure on this split")] = "val",
    images: Annotated[Path | None, _folder(help=_IMAGES_HELP)] = None,
    precision: Annotated[
        Precision, typer.Option(help="Of the network's arithmetic, as in serving; auto is the fastest")
    ] = Precision.fp32,
    calibration_images: Annotated[
        Path | None, _folder(help="Folder of typical pictures that int8 is fitted to; by default generated ones")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")] = False,
    plot: Annotated[Path | None, _folder(help="Write precision-recall curves and example pictures here")] = None,
    min_size: Annotated[int | None, _number(min=32, help="Shorter side, px; by default the weights' own")] = None,
    max_size: Annotated[int | None, _number(min=32, help="Longer side, px; by default the weights' own")] = None,
    device: Annotated[str, _device()] = "auto",
) -> None:
    """Measure a detector's average precision by COCO's rules."""
    refuse_at_once(complaint(weights=weights, data=data))
    from model.build import from_checkpoint, resolve_checkpoint
    from model.inference.build import serving_model
    from model.inference.calibration import calibration_pictures
    from model.inference.precision import check_precision
    from model.training.coco import is_named_for
    from model.training.evaluation import check_evaluator, detect_all, evaluate
    from model.training.plots import plot_all
    from model.training.processes import find_device, joined_processes
    from model.training.sources import open_data
    from model.training.table import metrics_table

    with told_errors():
        console = Console(stderr=True)
        check_precision(precision.value, find_device(device))
        check_evaluator()  # before pictures are looked at for minutes
        checkpoint = resolve_checkpoint(weights, tell=lambda message: console.print(message, markup=False))
        chosen: dict[str, Any] = {"min_size": min_size, "max_size": max_size}
        model = from_checkpoint(checkpoint, **{key: size for key, size in chosen.items() if size is not None})
        whole = is_named_for(Path(data), split)
        measured, report = open_data(data, split, keep_empty=True, whole=whole, images=images)
        tell(report, console)
        with joined_processes(device) as processes, Progress(console=console, transient=True) as bar:
            task = bar.add_task("detecting", total=len(measured))
            served = serving_model(
                model,
                device=processes.device,
                precision=precision.value,
                calibration=partial(calibration_pictures, calibration_images),
            )
            found = detect_all(served.detect, measured, advance=lambda: bar.advance(task))
        metrics = evaluate(measured, found, checkpoint.categories)
        if as_json:
            about = {"weights": checkpoint.name, "data": data, "split": split, "precision": served.precision}
            sys.stdout.write(json.dumps(about | metrics.as_json() | {"left_out": report.counts()}, indent=2) + "\n")
        else:
            Console().print(metrics_table(metrics, title=f"{checkpoint.name} on {report.source}"))
        if plot is not None:
            written = plot_all(plot, metrics, measured, found, checkpoint.categories)
            console.print(f"wrote {len(written)} pictures to {plot}", markup=False, highlight=False)


def sample(
    output: Annotated[Path, _folder(help="Folder to write to")] = Path("samples"),
    count: Annotated[int, _number(min=1, help="How many")] = 1,
    seed: Annotated[int, _number(min=0, help="Other pictures for another seed")] = 0,
    width: Annotated[int, _number(min=64, max=8192, help="Of each, px")] = 640,
    height: Annotated[int, _number(min=64, max=8192, help="Of each, px")] = 480,
) -> None:
    """Draw pictures like blood smears.

    They are sample_0.jpg and so on; boxes.json tells what they show.
    """
    from model.training.synthetic import SyntheticData

    with told_errors():
        data = SyntheticData("test", count=count, size_hw=(height, width), seed=seed)
        output.mkdir(parents=True, exist_ok=True)
        truth = {}
        for index in range(count):
            path = output / f"sample_{index}.jpg"
            data.picture(index).save(path, quality=92)
            target = data[index][1]
            truth[path.name] = {
                "boxes": target["boxes"].tolist(),
                "label_names": [data.categories.name(label) for label in target["labels"].tolist()],
            }
            sys.stdout.write(f"{path}\n")
        (output / "boxes.json").write_text(json.dumps(truth), encoding="utf-8")


def tell(report: Report, console: Console) -> None:
    for line in report.lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
