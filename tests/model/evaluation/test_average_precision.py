from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from model.boxes import box_area
from model.data.samples import DataError
from model.evaluation.average_precision import evaluate
from model.evaluation.plots import plot_all
from model.structures import Detection, SizeHW, Target
from model.weights.categories import Categories
from service.cli.evaluate import metrics_table


class Listed:
    """One 200x200 image with the boxes given."""

    def __init__(self, boxes: list[list[float]], labels: list[int], crowd: list[list[float]] | None = None) -> None:
        self.categories = Categories.of_objects(["cat", "dog"])
        self._target = Target(boxes=torch.tensor(boxes).reshape(-1, 4), labels=torch.tensor(labels))
        self._crowd = torch.tensor(crowd or []).reshape(-1, 4)

    def __len__(self) -> int:
        return 1

    def name(self, index: int) -> str:
        return "image.jpg"

    def size_hw(self, index: int) -> SizeHW:
        return 200, 200

    def crowd_boxes(self, index: int) -> tuple[Tensor, Tensor]:
        return self._crowd, torch.ones(len(self._crowd), dtype=torch.int64)

    def target(self, index: int) -> Target:
        return self._target

    def areas(self, index: int) -> Tensor:
        return box_area(self._target["boxes"])

    def fingerprint(self) -> str:
        return "one image"

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return torch.zeros(3, 200, 200, dtype=torch.uint8), self._target


def found(boxes: list[list[float]], labels: list[int], scores: list[float]) -> list[Detection]:
    return [
        Detection(
            boxes=torch.tensor(boxes).reshape(-1, 4),
            labels=torch.tensor(labels, dtype=torch.int64),
            scores=torch.tensor(scores),
        )
    ]


TWO = [[10.0, 10.0, 30.0, 30.0], [50.0, 50.0, 170.0, 170.0]]


def test_perfect_detections_have_precision_one_in_class_and_size() -> None:
    metrics = evaluate(Listed(TWO, [1, 2]), found(TWO, [1, 2], [0.9, 0.8]))
    assert metrics.overall.ap == metrics.overall.ap50 == metrics.overall.recall == 1
    assert metrics.by_class["cat"].boxes == 1
    assert metrics.by_size["small"].ap == 1
    assert metrics.by_size["medium"].ap is None
    assert metrics.by_size["large"].boxes == 1


def test_a_box_of_overlap_three_quarters_counts_up_to_there() -> None:
    # 100 wide, of which 75 are covered by a box inside it: overlap 0.75, so right for 0.50, 0.55, ..., 0.75.
    truth = Listed([[0.0, 0.0, 100.0, 100.0]], [1])
    metrics = evaluate(truth, found([[0.0, 0.0, 75.0, 100.0]], [1], [0.9]))
    assert metrics.overall.ap == pytest.approx(0.6)
    assert metrics.overall.ap50 == metrics.overall.ap75 == 1


def test_a_wrong_box_before_the_right_one_halves_the_precision() -> None:
    truth = Listed([[0.0, 0.0, 100.0, 100.0]], [1])
    boxes = [[120.0, 120.0, 150.0, 150.0], [0.0, 0.0, 100.0, 100.0]]
    assert evaluate(truth, found(boxes, [1, 1], [0.9, 0.8])).overall.ap == pytest.approx(0.5)


def test_detections_in_a_crowd_are_neither_right_nor_wrong() -> None:
    truth = Listed([[0.0, 0.0, 40.0, 40.0]], [1], crowd=[[100.0, 100.0, 200.0, 200.0]])
    boxes = [[120.0, 120.0, 150.0, 150.0], [0.0, 0.0, 40.0, 40.0]]
    assert evaluate(truth, found(boxes, [1, 1], [0.9, 0.8])).overall.ap == 1


def test_nothing_found_is_zero_where_there_is_something_to_find() -> None:
    metrics = evaluate(Listed(TWO[:1], [1]), found([], [], []))
    assert metrics.overall.ap == 0
    assert metrics.by_class["dog"].ap is None
    assert metrics.by_size["small"].ap == 0
    assert metrics.by_size["large"].ap is None


def test_classes_meet_by_name() -> None:
    theirs = Categories.of_objects(["zebra", "dog", "cat"])
    metrics = evaluate(Listed(TWO, [1, 2]), found([*TWO, TWO[0]], [3, 2, 1], [0.9, 0.8, 0.95]), theirs)
    assert metrics.overall.ap == 1
    with pytest.raises(DataError, match="no class has a name in common"):
        evaluate(Listed(TWO, [1, 2]), found(TWO, [1, 1], [0.9, 0.8]), Categories.of_objects(["zebra"]))


def test_a_class_may_be_called_like_markup() -> None:
    data = Listed(TWO[:1], [1])
    data.categories = Categories.of_objects(["[/b] [red]cell"])
    console = Console(width=80)
    with console.capture() as printed:
        console.print(metrics_table(evaluate(data, found(TWO[:1], [1], [0.9])), title="[/i]"))
    assert "[/b] [red]cell" in printed.get()
    assert "[/i]" in printed.get()


def test_the_metrics_go_into_json_a_table_and_pictures(tmp_path: Path) -> None:
    data, detections = Listed(TWO, [1, 2]), found(TWO, [1, 2], [0.9, 0.8])
    metrics = evaluate(data, detections)
    assert json.loads(json.dumps(metrics.as_json()))["by_class"]["dog"]["ap50"] == 1
    console = Console(width=80)
    with console.capture() as printed:
        console.print(metrics_table(metrics, title="t"))
    assert "1.000" in printed.get()
    written = plot_all(tmp_path, metrics, data, detections, data.categories)
    assert [path.name for path in written] == ["precision_recall.png", "example_image.jpg"]
    assert all(path.stat().st_size > 500 for path in written)
