"""The detector that a run begins with: untrained, or from weights whose classes may be others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from model.architectures import Architecture
from model.build import from_checkpoint, untrained
from model.faster_rcnn import REPRESENTATION_SIZE, FasterRCNN
from model.resnet import Bottleneck
from model.roi_heads import FastRCNNPredictor
from model.roi_pool import MultiScaleRoIAlign
from model.training.settings import TrainSettings
from model.weights.categories import Categories
from model.weights.checkpoints import Checkpoint, CheckpointInfo

_PYRAMID_STRIDES = (4, 8, 16, 32)
_LIVE_EPS = 1e-5  # torch's own; live batch norm cannot do with the official COCO file's 0.0


def untrained_detector(architecture: Architecture, categories: Categories, settings: TrainSettings) -> FasterRCNN:
    """All weights at their random start, from torch's generator; live batch norm, whatever the settings say."""
    model = untrained(architecture, num_classes=len(categories), **_arguments(settings))
    for module in model.modules():
        # Each block begins as the identity, which lets a fresh body learn faster (Goyal et al. 2017, section 5.1).
        if isinstance(module, Bottleneck) and isinstance(module.bn3, nn.BatchNorm2d):
            nn.init.zeros_(module.bn3.weight)
    return _prepared(model, settings)


def detector_from(checkpoint: Checkpoint, categories: Categories, settings: TrainSettings) -> FasterRCNN:
    """All weights of a checkpoint; where its classes are others, a fresh last layer for the new ones.

    Raises:
        WeightsError: the checkpoint does not fit.
    """
    norm_eps = result_info(checkpoint.info, categories, settings).norm_eps
    model = from_checkpoint(
        replace(checkpoint, info=replace(checkpoint.info, norm_eps=norm_eps)),
        trainable_backbone_layers=settings.trainable_layers,
        frozen_norm=not settings.live_norm,
        **_arguments(settings),
    )
    if checkpoint.categories.names != categories.names:
        model.roi_heads.box_predictor = FastRCNNPredictor(REPRESENTATION_SIZE, len(categories))
    return _prepared(model, settings)


def result_info(begin: CheckpointInfo | None, categories: Categories, settings: TrainSettings) -> CheckpointInfo:
    """What the run's checkpoints store: what its start weights stored (thresholds, pixel norms), and the settings.

    Args:
        begin: of the weights that the run begins with; None from scratch.
    """
    begin = begin or CheckpointInfo()
    return CheckpointInfo(
        class_names=categories.names,
        norm_eps=(begin.norm_eps or _LIVE_EPS) if settings.live_norm else begin.norm_eps,
        model_kwargs=begin.model_kwargs | settings.model_kwargs,
    )


def autocast(settings: TrainSettings, device: torch.device) -> torch.autocast:
    """The run's precision, for what the model computes within it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")


def _arguments(settings: TrainSettings) -> dict[str, Any]:
    return settings.model_kwargs | {
        "rpn_batch_size_per_image": settings.rpn_samples,
        "rpn_pre_nms_top_n_train": settings.proposals,
        "rpn_post_nms_top_n_train": settings.proposals,
        "box_batch_size_per_image": settings.roi_samples,
        "box_positive_fraction": settings.roi_positive_fraction,
    }


def _prepared(model: FasterRCNN, settings: TrainSettings) -> FasterRCNN:
    model.roi_heads.box_loss = settings.box_loss
    pool = model.roi_heads.box_roi_pool
    assert isinstance(pool, MultiScaleRoIAlign)
    pool.pin_scales(_PYRAMID_STRIDES)
    return model.train()
