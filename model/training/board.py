"""Scalars for TensorBoard, an extra."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from model.data.samples import INSTALL_EXTRA, DataError
from model.evaluation.average_precision import Metrics


class TensorBoard:
    """Writes every update's losses and rate, and every evaluation's precisions.

    Raises:
        DataError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise DataError(f"--tensorboard needs it installed: {INSTALL_EXTRA}") from error
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def updated(self, iteration: int, losses: Mapping[str, float], learning_rate: float) -> None:
        for name, value in losses.items():
            self._writer.add_scalar(f"loss/{name.removeprefix('loss_')}", value, iteration)
        self._writer.add_scalar("rate", learning_rate, iteration)

    def evaluated(self, iteration: int, metrics: Metrics, is_best: bool) -> None:
        overall = metrics.overall
        for name, value in (("AP", overall.ap), ("AP50", overall.ap50), ("AP75", overall.ap75)):
            if value is not None:
                self._writer.add_scalar(f"precision/{name}", value, iteration)
        for name, precision in metrics.by_class.items():
            if precision.ap50 is not None:
                self._writer.add_scalar(f"precision of {name}/AP50", precision.ap50, iteration)
