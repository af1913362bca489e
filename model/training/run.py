"""A training run as a whole: the start weights, the detector, the trainer and its listeners."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from model.architectures import FASTERRCNN_RESNET50_FPN, Architecture, architecture_of
from model.build import resolve_checkpoint
from model.data.samples import DataError, DetectionData
from model.evaluation.average_precision import check_evaluator
from model.faster_rcnn import FasterRCNN
from model.training.board import TensorBoard
from model.training.detector import detector_from, result_info, untrained_detector
from model.training.log import LOG_NAME, JsonLog
from model.training.processes import Processes
from model.training.settings import TrainSettings
from model.training.snapshot import LAST_NAME, read_snapshot
from model.training.trainer import BEST_NAME, Listener, Result, Trainer
from model.weights.checkpoints import Checkpoint, CheckpointInfo, WeightsUnavailableError, bundled_is_present
from model.weights.names import AUTO, COCO_V1, NONE, RANDOM

_FETCH_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What to train, on what, and where to.

    Attributes:
        validation: None to keep the last weights instead of the best.
        begin: None for training from scratch.
        architecture: of a detector that is trained from scratch.
    """

    data: DetectionData
    validation: DetectionData | None
    begin: Checkpoint | None
    settings: TrainSettings
    folder: Path
    resume: bool = False
    allow_changes: bool = False
    tensorboard: bool = False
    architecture: Architecture = FASTERRCNN_RESNET50_FPN


def read_start(name: str, tell: Callable[[str], None], architecture: Architecture | None = None) -> Checkpoint | None:
    """Read the weights to begin with; None for "none" and "random". "auto" is the first of COCO_V1, bundled and none
    that can be had.

    Args:
        tell: called with what is chosen, in words.
        architecture: of the weights; None takes that of the file.

    Raises:
        WeightsError, WeightsUnavailableError: they cannot be had.
    """
    begin: Checkpoint | None = None
    if name == AUTO:
        try:
            wanted = AUTO if bundled_is_present() else COCO_V1
            begin = resolve_checkpoint(wanted, architecture, timeout_s=_FETCH_TIMEOUT_S, tell=tell)
        except WeightsUnavailableError as error:
            tell(str(error))
    elif name not in {NONE, RANDOM}:
        begin = replace(resolve_checkpoint(name, architecture), name=Path(name).name)
    tell("beginning with untrained weights" if begin is None else f"beginning with the weights {begin.name}")
    return begin


@dataclass(frozen=True, kw_only=True)
class EarlierRun:
    """The run that a folder holds: what it began with, carrying its present weights, and its settings by name."""

    begin: Checkpoint | None
    architecture: Architecture
    settings: dict[str, Any]


def check_folder(folder: Path, *, resume: bool) -> None:
    """Reject a folder that holds another run, or no run to resume.

    Raises:
        DataError: with what to do.
    """
    if resume and not (folder / LAST_NAME).exists():
        raise DataError(f"{folder} has no state to resume from ({LAST_NAME}). Train without --resume")
    if not resume and any((folder / name).exists() for name in (LAST_NAME, BEST_NAME)):
        raise DataError(f"{folder} already holds a run. Continue it with --resume, or give another --output")


def read_earlier(folder: Path, weights: str, architecture: Architecture | None = None) -> EarlierRun:
    """What is to be resumed, so that its weights are not looked for again.

    Args:
        weights: that it is now asked to begin with; "auto" for its own.
        architecture: that it is now asked to have; None for its own.

    Raises:
        DataError: it has no state, or a broken one, or it began with other weights, or with another architecture.
    """
    check_folder(folder, resume=True)
    state = read_snapshot(folder, torch.device("cpu"))
    assert state is not None
    name = state["begin"]
    asked = NONE if weights == RANDOM else Path(weights).name
    if asked not in {AUTO, name or NONE}:
        raise DataError(
            f"the run in {folder} began with the weights {name or NONE}, not {weights}. Repeat them, or train without "
            "--resume, into another folder"
        )
    own = architecture_of(state["model"])
    if architecture not in {None, own}:
        raise DataError(f"the run in {folder} trains a {own.name}. Leave out --model, or train into another folder")
    info = CheckpointInfo(**state["info"])
    begin = None if name is None else Checkpoint(name=name, state_dict=state["model"], info=info)
    return EarlierRun(begin=begin, architecture=own, settings=state["settings"])


def run_training(
    request: RunRequest, processes: Processes, tell: Callable[[str], None], listeners: Sequence[Listener] = ()
) -> Result:
    """Train, and say where the result is.

    Args:
        tell: called with what happens, in words, in the first process.
        listeners: called with how the run goes, in the first process.

    Raises:
        DataError: the folder already has a run that is not to be resumed, or the batch cannot be shared out.
        TrainingError: the losses are no longer finite.
        TrainingInterrupted: Ctrl-C or SIGTERM came; the state is saved.
    """
    settings, folder, begin = request.settings, request.folder, request.begin
    check_folder(folder, resume=request.resume)
    _check_shares(settings, processes)
    if request.validation is not None:
        check_evaluator()
    folder.mkdir(parents=True, exist_ok=True)
    categories = request.data.categories
    with ExitStack() as stack:
        torch.set_flush_denormal(True)  # weights that decay towards zero would slow a CPU down a hundredfold
        stack.callback(torch.set_flush_denormal, False)  # it is the whole thread's
        listeners = [*listeners, JsonLog(folder / LOG_NAME)] if processes.is_first else []
        if processes.is_first and request.tensorboard:
            listeners.append(stack.enter_context(TensorBoard(folder)))
        trainer = Trainer(
            model=_initial_model(request),
            categories=categories,
            data=request.data,
            validation=request.validation,
            settings=settings,
            folder=folder,
            processes=processes,
            begin=None if begin is None else begin.name,
            info=result_info(None if begin is None else begin.info, categories, settings),
            listeners=listeners,
        )
        result = trainer.run(resume=request.resume, allow_changes=request.allow_changes)
    best = "" if result.best_ap is None else f", AP {result.best_ap:.3f}"
    tell(f"done{best}. Serve it: frcnn serve --weights {folder / BEST_NAME}")
    return result


def _check_shares(settings: TrainSettings, processes: Processes) -> None:
    parts = processes.count * settings.accumulate
    if settings.batch_size % parts:
        raise DataError(
            f"a batch of {settings.batch_size} images cannot be divided equally among {processes.count} processes "
            f"times {settings.accumulate} accumulated parts. Give a --batch-size that is a multiple of {parts}"
        )


def _initial_model(request: RunRequest) -> FasterRCNN:
    """The detector before the first update, the same for the same seed."""
    torch.manual_seed(request.settings.seed)
    if request.begin is None:
        return untrained_detector(request.architecture, request.data.categories, request.settings)
    return detector_from(request.begin, request.data.categories, request.settings)
