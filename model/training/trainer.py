"""The training loop.

Everything random in an update is drawn from a seed made of the run's seed and the iteration (see `batches`), so a run
that was killed continues to the same numbers, and the order of a run does not depend on how many processes share it.
"""

from __future__ import annotations

import copy
import itertools
import math
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.data.samples import DetectionData
from model.evaluation.average_precision import Metrics
from model.faster_rcnn import FasterRCNN
from model.losses.losses import class_weights
from model.structures import Target
from model.training.averaging import MovingAverage
from model.training.batches import batches, shard_seed, shards
from model.training.detector import autocast, result_info
from model.training.identity import check_agreement, check_same_run, identity
from model.training.interruption import TrainingInterrupted, noted_signals
from model.training.judge import Judge
from model.training.loading import Shard, load_ahead, targets_to_device, to_device
from model.training.log import LOG_NAME, cut_log
from model.training.processes import Processes
from model.training.schedule import rate_factor
from model.training.settings import TrainSettings
from model.training.snapshot import LAST_NAME, read_snapshot, save_snapshot
from model.weights.categories import Categories
from model.weights.checkpoints import CheckpointInfo

_CALMER = "Begin again with a lower --learning-rate, a longer --warmup, or --clip-norm 1"
BEST_NAME = "best.safetensors"
LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")


class TrainingError(RuntimeError):
    """Training cannot go on. The message says what to do."""


class _EvaluationDropped(Exception):  # noqa: N818 - nothing went wrong
    """A signal came while the weights were evaluated."""


class Listener(Protocol):
    """Receives how a run goes: the progress bar, the log, TensorBoard."""

    def updated(self, iteration: int, losses: Mapping[str, float], learning_rate: float) -> None: ...

    def evaluated(self, iteration: int, metrics: Metrics, is_best: bool) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Result:
    iterations: int
    best_ap: float | None


class Trainer:
    """One run: a model, its data, and the folder that its results go to.

    Args:
        model: from `detector`; it is trained in place.
        categories: names of its classes.
        validation: judges which weights are best; without it the last ones are.
        info: what its checkpoints store beside the tensors; by default the settings alone decide it.
        begin: name of the weights that it began with, None for untrained ones.
        listeners: called in the first process only.
    """

    def __init__(
        self,
        *,
        model: FasterRCNN,
        categories: Categories,
        data: DetectionData,
        validation: DetectionData | None,
        settings: TrainSettings,
        folder: Path,
        processes: Processes,
        info: CheckpointInfo | None = None,
        begin: str | None = None,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.settings, self.processes, self.folder = settings, processes, folder
        self.data, self.validation, self.listeners = data, validation, listeners
        self.begin, self.info = begin, info or result_info(None, categories, settings)
        on_gpu = processes.device.type == "cuda"
        if settings.class_balance > 0:
            labels = torch.cat([data.target(index)["labels"] for index in range(len(data))])
            model.roi_heads.class_weights = class_weights(labels, len(categories), settings.class_balance)
        # Copied before its batch norm may need all processes: only the first one judges.
        self.judge = Judge(
            copy.deepcopy(model).to(processes.device, memory_format=torch.channels_last),  # type: ignore[call-overload]
            data=data,
            validation=validation,
            settings=settings,
            # Batch norm sees the images of all processes together on GPUs only.
            norm_batch_size=settings.batch_size // (settings.accumulate * (1 if on_gpu else processes.count)),
            path=folder / BEST_NAME,
            info=self.info,
        )
        if processes.count > 1 and on_gpu:
            model = cast(FasterRCNN, nn.SyncBatchNorm.convert_sync_batchnorm(model))
        self.model: FasterRCNN = model.to(processes.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = MovingAverage(self.model, settings.average_decay)
        self.optimizer = torch.optim.SGD(
            _parameter_groups(self.model, settings), momentum=settings.momentum, fused=True
        )
        self.engine = self._engine()
        self.iteration = 0
        self._is_judged = True  # whether the evaluation that was due after the last update is done
        self._saved = self._progress  # of the state that is saved; a run that has not begun needs none
        self._saved_at = time.monotonic()

    def run(self, *, resume: bool = False, allow_changes: bool = False) -> Result:
        """Train to the end, or from where the folder's last snapshot was taken.

        Args:
            allow_changes: go on under other settings than the run was begun with, where its state permits it.

        Raises:
            TrainingInterrupted: Ctrl-C or SIGTERM came; the state is saved.
            TrainingError: the loss is no longer finite.
            DataError: an image can no longer be read, the snapshot is broken or of a run with other settings or
                data, or the processes do not begin alike.
        """
        with noted_signals() as self._interruption:
            return self._run(resume, allow_changes)

    def _run(self, resume: bool, allow_changes: bool) -> Result:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._identity = identity(self.settings, self.processes, self.data, self.validation)
        if resume:
            self._resume(allow_changes)
        if self.processes.is_first:
            cut_log(self.folder / LOG_NAME, self.iteration, is_judged=self._is_judged)
        check_agreement(self.processes, self.iteration, self._identity, self.folder)
        sizes = [self.data.size_hw(index) for index in range(len(self.data))]
        order = itertools.islice(batches(sizes, self.settings.batch_size, self.settings.seed), self.iteration, None)
        on_gpu = self.processes.device.type == "cuda"
        with load_ahead(self.data, map(self._own_shards, order), pin=on_gpu) as loaded:
            if not self._is_judged:
                self._after_update()
            while self.iteration < self.settings.iterations:
                self._stop_if_told()
                self._update(next(loaded))
        self.processes.wait()
        return Result(iterations=self.iteration, best_ap=self.judge.best_ap)

    def _update(self, loaded: list[Shard]) -> None:
        """One step of the weights, and what is due after it."""
        settings = self.settings
        rate = settings.learning_rate * rate_factor(
            settings.schedule, self.iteration, settings.iterations, settings.warmup
        )
        losses = self._gradients(loaded)
        norm = losses.new_zeros(())
        if settings.clip_norm > 0:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.model)
        values = self._finite(losses, norm)
        self.iteration += 1
        if self.processes.is_first:
            for listener in self.listeners:
                listener.updated(self.iteration, values, rate)
        self._after_update()

    def _gradients(self, loaded: list[Shard]) -> Tensor:
        """Backward passes over this process's shards; the `LOSSES` are means over all shards of all processes."""
        accumulate = self.settings.accumulate
        total = torch.zeros(len(LOSSES), device=self.processes.device)
        for part, shard in enumerate(loaded):
            torch.manual_seed(shard_seed(self.settings.seed, self.iteration, self.processes.rank * accumulate + part))
            images, targets = self._augmented(shard)
            is_last = part == accumulate - 1
            with nullcontext() if is_last or self.processes.count == 1 else cast(Any, self.engine).no_sync():
                losses = self._losses(images, targets)
                (torch.stack(list(losses.values())).sum() / accumulate).backward()
            total += torch.stack([losses[name].detach() for name in LOSSES]) / accumulate
        return self.processes.mean(total)

    def _finite(self, losses: Tensor, norm: Tensor) -> dict[str, float]:
        """The losses by name. The host waits for a GPU only here, once everything of the update is under way."""
        *of_losses, of_gradients = torch.cat((losses, norm[None].to(losses.dtype))).tolist()
        values = dict(zip(LOSSES, of_losses, strict=True))
        if not all(math.isfinite(value) for value in of_losses):
            raise TrainingError(f"the losses at iteration {self.iteration} are {values}: no longer finite. {_CALMER}")
        if not math.isfinite(of_gradients):
            raise TrainingError(f"the gradients at iteration {self.iteration} are no longer finite. {_CALMER}")
        return values

    def _losses(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        with autocast(self.settings, self.processes.device):
            losses: dict[str, Tensor] = self.engine(images, targets)
        return losses

    def _augmented(self, shard: Shard) -> tuple[list[Tensor], list[Target]]:
        """Draw what happens to this shard, set the size that the model resizes it to, and put it on the device.

        Pixels go there as bytes and are changed there. Boxes are few: the host changes them, and they go in one copy.
        """
        settings, device = self.settings, self.processes.device
        augmentation = settings.augmentation
        if self.iteration >= settings.whole_from * settings.iterations:
            augmentation = replace(augmentation, crop=1.0)
        factor = augmentation.crop * (1 + settings.scale_jitter * (2 * torch.rand((), device="cpu").item() - 1))
        self.model.transform.min_size = (round(settings.min_size * factor),)
        self.model.transform.max_size = round(settings.max_size * factor)
        transpose = augmentation.draw_transpose()
        images, targets = [], []
        for image, target in shard:
            changed, changed_target = augmentation(to_device(image, device), target, transpose=transpose)
            images.append(changed)
            targets.append(changed_target)
        return images, targets_to_device(targets, device)

    def _after_update(self) -> None:
        """Do what is due: evaluate, save the state, stop."""
        settings = self.settings
        is_over = self.iteration == settings.iterations
        # A run that continues owes what was due under the settings before.
        self._is_judged = self._is_judged and not (is_over or _is_due(self.iteration, settings.evaluate_every))
        if not self._is_judged and not self._is_told_to_stop():
            if self.processes.is_first and not (self.folder / LAST_NAME).exists():
                self._save()  # the best weights without a state would be a run that can neither begin nor go on
            self._judge()
        late = settings.save_minutes > 0 and time.monotonic() - self._saved_at > 60 * settings.save_minutes
        if self.processes.is_first and (is_over or late or _is_due(self.iteration, settings.save_every)):
            self._save()
        if not (is_over and self._is_judged):
            self._stop_if_told()

    @property
    def _progress(self) -> tuple[int, bool]:
        return self.iteration, self._is_judged

    def _save(self) -> None:
        save_snapshot(self.folder, self._snapshot())
        self._saved, self._saved_at = self._progress, time.monotonic()

    def _is_told_to_stop(self) -> bool:
        """Whether a signal has come to one of the processes: they stop at the same update, or would wait for ever."""
        return self.processes.any(self._interruption.number is not None)

    def _stop_if_told(self) -> None:
        """End the run if a signal came, wherever it came since the last update; the state is saved first."""
        if self._is_told_to_stop():
            if self.processes.is_first and self._saved != self._progress:
                self._save()
            raise TrainingInterrupted(self._interruption.number or signal.SIGTERM, self.iteration)

    def _judge(self) -> None:
        """Evaluate the averaged weights and keep them if they are the best so far; a signal drops the evaluation."""
        dropped = False
        if self.processes.is_first:
            try:
                verdict = self.judge.judge(self.average.state_dict, advance=self._drop_if_told)
            except _EvaluationDropped:
                dropped = True
            else:
                if verdict.metrics is not None:
                    for listener in self.listeners:
                        listener.evaluated(self.iteration, verdict.metrics, verdict.is_best)
        self._is_judged = not self.processes.any(dropped)

    def _drop_if_told(self) -> None:
        if self._interruption.number is not None:
            raise _EvaluationDropped

    def _snapshot(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict,
            "average_updates": self.average.updates,
            "best_ap": self.judge.best_ap,
            "judged": self._is_judged,
            "begin": self.begin,
            "info": asdict(self.info),
            **self._identity,
        }

    def _resume(self, allow_changes: bool) -> None:
        state = read_snapshot(self.folder, self.processes.device)
        if state is None:
            return
        names = self.info.class_names or ()
        check_same_run(state, self._identity, names, self.folder, allow_changes=allow_changes)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load(state["average"], state["average_updates"])
        self.iteration, self.judge.best_ap, self._is_judged = state["iteration"], state["best_ap"], state["judged"]
        self._saved = self._progress

    def _engine(self) -> nn.Module:
        """The model as it is called in training: with several processes, one that shares gradients."""
        if self.processes.count == 1:
            return self.model
        on_gpu = self.processes.device.type == "cuda"
        engine: nn.Module = DistributedDataParallel(self.model, device_ids=[self.processes.device] if on_gpu else None)
        return engine

    def _own_shards(self, batch: list[int]) -> list[list[int]]:
        """The parts of a batch that this process computes, one after the other."""
        accumulate, rank = self.settings.accumulate, self.processes.rank
        return shards(batch, self.processes.count * accumulate)[rank * accumulate : (rank + 1) * accumulate]


def _parameter_groups(model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """Weights decay; norms and biases, which are vectors, do not."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in learning if p.dim() > 1], "weight_decay": settings.weight_decay, "lr": 0.0},
        {"params": [p for p in learning if p.dim() <= 1], "weight_decay": 0.0, "lr": 0.0},
    ]


def _is_due(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0
