from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from model.data.synthetic import CLASS_NAMES, Cell, SyntheticData, _draw_cell


def digest(data: SyntheticData, index: int) -> str:
    image, target = data[index]
    return hashlib.sha256(image.numpy().tobytes() + target["boxes"].numpy().tobytes()).hexdigest()


def test_the_same_arguments_draw_the_same_picture() -> None:
    first, second = SyntheticData(size_hw=(96, 128)), SyntheticData(size_hw=(96, 128))
    assert digest(first, 3) == digest(second, 3)
    assert digest(first, 3) != digest(first, 4)
    assert digest(first, 3) != digest(SyntheticData("val", size_hw=(96, 128)), 3)
    assert digest(first, 3) != digest(SyntheticData(size_hw=(96, 128), seed=1), 3)


def test_every_class_is_drawn_and_boxes_lie_inside() -> None:
    data = SyntheticData(count=20, size_hw=(120, 160))
    labels = set()
    for index in range(len(data)):
        image, target = data[index]
        assert image.shape == (3, 120, 160)
        assert image.dtype == torch.uint8
        boxes = target["boxes"]
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([160.0, 120.0])).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        labels |= set(target["labels"].tolist())
    assert labels == {1, 2, 3}


@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_a_box_bounds_its_cell(class_name: str) -> None:
    """Drawn alone on white, a cell changes the pixels in its box, and a soft edge at most a pixel wide around it."""
    for seed in range(10):
        random = np.random.default_rng(seed)
        waves = tuple((random.uniform(0, 0.05), random.uniform(0, 6)) for _ in range(3))
        cell = Cell(
            class_name=class_name, x=70 + seed / 7, y=60.3, radius=20 + seed, stretch=0.9, angle=seed, outline=waves
        )
        canvas = np.ones((120, 160, 3), np.float32)
        rows, columns = np.mgrid[0:120, 0:160].astype(np.float32) + 0.5
        box = _draw_cell(canvas, cell, random, rows, columns)
        ys, xs = np.nonzero((canvas < 1).any(axis=2))
        assert box == pytest.approx([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], abs=1)
