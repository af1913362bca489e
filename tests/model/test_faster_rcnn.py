from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from model.faster_rcnn import FasterRCNN, default_anchor_generator
from model.roi_heads import FastRCNNPredictor


def test_what_faster_rcnn_needs_is_told() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 8, 1))
    with pytest.raises(ValueError, match="needs an attribute out_channels"):
        FasterRCNN(backbone, 3)
    setattr(backbone, "out_channels", 8)  # noqa: B010 - torch says that a module has modules and tensors alone
    both: dict[str, Any] = {"num_classes": 3, "box_predictor": FastRCNNPredictor(1024, 3)}
    for arguments in ({}, both):
        with pytest.raises(ValueError, match="either num_classes or a box_predictor"):
            FasterRCNN(backbone, **arguments)


def test_default_anchors_have_one_size_on_each_of_five_levels() -> None:
    generator = default_anchor_generator()
    assert generator.num_anchors_per_location() == [3] * 5
    assert [int(cell[1, 2]) * 2 for cell in generator.cell_anchors] == [32, 64, 128, 256, 512]
