from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from model.evaluation.average_precision import evaluate
from model.evaluation.plots import draw_example, plot_all
from tests.support.labelled import TWO, Listed, found


def test_curves_and_examples_become_pictures(tmp_path: Path) -> None:
    data, detections = Listed(TWO, [1, 2]), found(TWO, [1, 2], [0.9, 0.8])
    metrics = evaluate(data, detections)
    written = plot_all(tmp_path / "plots", metrics, data, detections, data.categories)
    assert [path.name for path in written] == ["precision_recall.png", "example_image.jpg"]
    curve = np.asarray(Image.open(written[0]).convert("RGB"))
    assert curve.shape == (600, 720, 3)
    assert len(np.unique(curve.reshape(-1, 3), axis=0)) > 10  # lines of two classes, a grid and words
    with Image.open(written[1]) as example:
        assert example.size == (200, 200)


def test_true_boxes_are_blue_and_likely_detections_red() -> None:
    data = Listed([[20, 30, 80, 90]], [1])
    [detections] = found([[100, 30, 160, 90], [20, 120, 80, 180]], [1, 1], [0.9, 0.01])
    drawn = np.asarray(draw_example(data[0][0], data.target(0)["boxes"], detections, data.categories))
    blue = drawn[60, 20].tolist()
    assert blue[2] > max(blue[:2])
    red = drawn[60, 100].tolist()
    assert red[0] > max(red[1:])
    plate = drawn[32:44, 103:113].reshape(-1, 3)  # white letters on red
    assert [230, 60, 0] in plate.tolist()
    assert plate.min(axis=1).max() > 200
    assert not drawn[150, 20].any()  # too unlikely to be drawn
