from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from model.build import random_checkpoint
from model.losses.losses import BOX_LOSSES
from model.resnet import FrozenBatchNorm2d
from model.structures import Target
from model.training.detector import detector_from, result_info
from model.weights.categories import Categories
from model.weights.checkpoints import CheckpointInfo
from tests.support import tiny_run

CLASSES = Categories.of_objects(["gear"])


def test_the_result_tells_all_that_its_start_told() -> None:
    few = {"rpn_pre_nms_top_n_test": 300, "rpn_post_nms_top_n_test": 300}
    begin = CheckpointInfo(norm_eps=0.0, model_kwargs={"image_mean": [0.1, 0.2, 0.3], "min_size": 320} | few)
    info = result_info(begin, CLASSES, tiny_run.tiny_settings(1, detection_proposals=None))
    assert info.class_names == CLASSES.names
    assert info.norm_eps == 0.0
    assert info.model_kwargs["image_mean"] == [0.1, 0.2, 0.3]
    assert info.model_kwargs["min_size"] == 96
    assert few.items() <= info.model_kwargs.items()
    more = result_info(begin, CLASSES, tiny_run.tiny_settings(1, detection_proposals=500)).model_kwargs
    assert more["rpn_pre_nms_top_n_test"] == more["rpn_post_nms_top_n_test"] == 500


def test_live_norm_learns_from_weights_without_an_epsilon() -> None:
    checkpoint = replace(random_checkpoint(), info=CheckpointInfo(norm_eps=0.0))
    settings = tiny_run.tiny_settings(1, live_norm=True)
    model = detector_from(checkpoint, CLASSES, settings)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms
    assert {norm.eps for norm in norms} == {result_info(checkpoint.info, CLASSES, settings).norm_eps} == {1e-5}
    model.get_submodule("backbone.body")(torch.rand(2, 3, 64, 64))  # in training, where torch refuses an epsilon of 0

    frozen = detector_from(checkpoint, CLASSES, tiny_run.tiny_settings(1))
    assert {norm.eps for norm in frozen.modules() if isinstance(norm, FrozenBatchNorm2d)} == {0.0}


def test_the_box_loss_is_the_one_asked_for() -> None:
    """With the same weights, pictures and samples, the other losses are the same."""
    losses: dict[str, dict[str, Tensor]] = {}
    weights: dict[str, Tensor] | None = None
    target = Target(boxes=torch.tensor([[8.0, 8.0, 40.0, 40.0]]), labels=torch.tensor([1]))
    for box_loss in BOX_LOSSES:
        model = detector_from(random_checkpoint(), CLASSES, tiny_run.tiny_settings(1, box_loss=box_loss))
        weights = weights or model.state_dict()  # the last layer is random again for other classes
        model.load_state_dict(weights)
        torch.manual_seed(0)
        losses[box_loss] = model.losses([torch.full((3, 64, 64), 0.5)], [target])
    smooth_l1, giou = losses["smooth_l1"], losses["giou"]
    assert 0 < giou["loss_box_reg"] != smooth_l1["loss_box_reg"]
    assert all(smooth_l1[name].equal(giou[name]) for name in smooth_l1 if name != "loss_box_reg")


def test_the_class_weights_reach_the_losses() -> None:
    """They are those of the RoI heads alone. Whatever is positive here shows class 1."""
    model = detector_from(random_checkpoint(), CLASSES, tiny_run.tiny_settings(1))
    target = Target(boxes=torch.tensor([[8.0, 8.0, 40.0, 40.0]]), labels=torch.tensor([1]))
    losses: list[dict[str, Tensor]] = []
    for weights in (None, (1.0, 3.0)):
        model.roi_heads.class_weights = weights
        torch.manual_seed(0)
        losses.append(model.losses([torch.full((3, 64, 64), 0.5)], [target]))
    plain, weighted = losses
    assert all(plain[name].equal(weighted[name]) for name in ("loss_objectness", "loss_rpn_box_reg"))
    torch.testing.assert_close(weighted["loss_box_reg"], 3 * plain["loss_box_reg"])
    assert plain["loss_box_reg"] > 0
    assert weighted["loss_classifier"] > plain["loss_classifier"]
