from __future__ import annotations

from pathlib import Path

import pytest

from model.evaluation.average_precision import Metrics, Precision
from model.training.board import TensorBoard


def test_what_is_written_is_what_tensorboard_reads(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = Precision(ap=0.25, ap50=0.5, ap75=None, recall=0.75, boxes=4)
    nothing = Precision(ap=None, ap50=None, ap75=None, recall=None, boxes=0)
    metrics = Metrics(images=2, overall=found, by_class={"cat": found, "dog": nothing}, by_size={}, curves={})
    with TensorBoard(tmp_path) as board:
        board.updated(1, {"loss_classifier": 2.0, "loss_box_reg": 1.0}, 0.02)
        board.updated(2, {"loss_classifier": 1.5, "loss_box_reg": 0.5}, 0.01)
        board.evaluated(2, metrics, True)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert scalars == {
        "loss/classifier": [(1, 2.0), (2, 1.5)],
        "loss/box_reg": [(1, 1.0), (2, 0.5)],
        "rate": [(1, pytest.approx(0.02)), (2, pytest.approx(0.01))],
        "precision/AP": [(2, 0.25)],
        "precision/AP50": [(2, 0.5)],
        "precision of cat/AP50": [(2, 0.5)],
    }
