"""The weights of a run that are kept: averaged ones, the best of them by the validation data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.data.samples import DetectionData
from model.evaluation.average_precision import Metrics, detect_all, evaluate
from model.faster_rcnn import FasterRCNN
from model.structures import Detection
from model.training.detector import autocast
from model.training.norm import measure_norm
from model.training.settings import TrainSettings
from model.weights.checkpoints import CheckpointInfo, save_checkpoint


@dataclass(frozen=True)
class Verdict:
    """An evaluation.

    Attributes:
        metrics: None without validation data.
        is_best: whether these weights are kept.
    """

    metrics: Metrics | None
    is_best: bool


class Judge:
    """Evaluates averaged weights, and keeps the best as a file.

    Args:
        model: detects with the weights that are judged; not the one in training.
        data: training images, on which live batch norm is measured.
        validation: decides which weights are best; without it the last ones are.
        norm_batch_size: images that training takes the statistics of batch norm over.
        path: of the file.
        info: what the file stores beside the tensors.
    """

    def __init__(
        self,
        model: FasterRCNN,
        *,
        data: DetectionData,
        validation: DetectionData | None,
        settings: TrainSettings,
        norm_batch_size: int,
        path: Path,
        info: CheckpointInfo,
    ) -> None:
        self.model = model.eval()
        self.best_ap: float | None = None
        self._data, self._validation, self._settings = data, validation, settings
        self._norm_batch_size, self._path, self._info = norm_batch_size, path, info

    def judge(self, average: Mapping[str, Tensor], *, advance: Callable[[], None]) -> Verdict:
        """Evaluate these weights, and keep them if none were better.

        Args:
            advance: called after each image; what it raises ends the evaluation, and nothing is kept.
        """
        self.load(average)
        metrics: Metrics | None = None
        ap: float | None = None
        if self._validation is not None:
            metrics = evaluate(self._validation, detect_all(self._detect, self._validation, advance=advance))
            ap = metrics.overall.ap or 0.0
        is_best = ap is None or self.best_ap is None or ap >= self.best_ap
        if is_best:
            self.best_ap = ap
            save_checkpoint(self._path, self.model.state_dict(), self._info)
        return Verdict(metrics, is_best)

    def load(self, average: Mapping[str, Tensor]) -> None:
        """Put these weights, with batch norm of their own, into the model that detects."""
        self.model.load_state_dict(average)
        if self._settings.norm_images > 0:
            with self._autocast():
                measure_norm(
                    self.model,
                    self._data,
                    images=self._settings.norm_images,
                    batch_size=self._norm_batch_size,
                    seed=self._settings.seed,
                )

    def _detect(self, images: list[Tensor]) -> list[Detection]:
        with self._autocast():
            found: list[Detection] = self.model.detect([image.to(self._device).float() / 255 for image in images])
        return found

    def _autocast(self) -> torch.autocast:
        return autocast(self._settings, self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device
