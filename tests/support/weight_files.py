"""What tests save as weights, and compare with what is read."""

from __future__ import annotations

import torch
from torch import Tensor

from model.weights.checkpoints import CheckpointInfo

CLS_SCORE = "roi_heads.box_predictor.cls_score.weight"
TENSORS = {"rpn.head.conv.0.0.weight": torch.arange(12.0).reshape(3, 4), CLS_SCORE: torch.ones(4, 2).half()}
INFO = CheckpointInfo(
    class_names=("__background__", "cat", "dog", "hare"),
    norm_eps=0.0,
    model_kwargs={"min_size": 320, "box_score_thresh": 0.25},
)


def assert_same_tensors(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(got[key], tensor)
        assert got[key].dtype is tensor.dtype
