from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import torch

from model.build import random_checkpoint
from model.categories import Categories
from model.resnet import FrozenBatchNorm2d
from model.training.detector import detector_from, result_info
from model.weights import CheckpointInfo

CLASSES = Categories.of_objects(["gear"])


def test_the_result_tells_all_that_its_start_told(tiny: ModuleType) -> None:
    begin = CheckpointInfo(norm_eps=0.0, model_kwargs={"image_mean": [0.1, 0.2, 0.3], "min_size": 320})
    info = result_info(begin, CLASSES, tiny.tiny_settings(1))
    assert info.class_names == CLASSES.names
    assert info.norm_eps == 0.0
    assert info.model_kwargs["image_mean"] == [0.1, 0.2, 0.3]
    assert info.model_kwargs["min_size"] == 96


def test_live_norm_learns_from_weights_without_an_epsilon(tiny: ModuleType) -> None:
    checkpoint = replace(random_checkpoint(), info=CheckpointInfo(norm_eps=0.0))
    settings = tiny.tiny_settings(1, live_norm=True)
    model = detector_from(checkpoint, CLASSES, settings)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms
    assert {norm.eps for norm in norms} == {result_info(checkpoint.info, CLASSES, settings).norm_eps} == {1e-5}
    model.backbone.body(torch.rand(2, 3, 64, 64))  # in training, where torch refuses an epsilon of 0

    frozen = detector_from(checkpoint, CLASSES, tiny.tiny_settings(1))
    assert {norm.eps for norm in frozen.modules() if isinstance(norm, FrozenBatchNorm2d)} == {0.0}
