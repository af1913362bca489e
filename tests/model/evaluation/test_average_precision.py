from __future__ import annotations

import json

import pytest

from model.data.samples import DataError
from model.evaluation.average_precision import evaluate
from model.weights.categories import Categories
from tests.support.labelled import TWO, Listed, found


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


def test_the_metrics_go_into_json() -> None:
    metrics = evaluate(Listed(TWO, [1, 2]), found(TWO, [1, 2], [0.9, 0.8]))
    assert json.loads(json.dumps(metrics.as_json()))["by_class"]["dog"]["ap50"] == 1
