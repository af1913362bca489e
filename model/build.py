"""Composition root: the one place that puts a Faster R-CNN ResNet-50 FPN together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torchvision.models._api import WeightsEnum

from model.arguments import AUTO, BUNDLED, COCO_V1, RANDOM
from model.backbone import resnet50_body, resnet_fpn
from model.download import fetch
from model.faster_rcnn import FasterRCNN
from model.resnet import ResNet
from model.weights import (
    Checkpoint,
    CheckpointInfo,
    WeightsError,
    WeightsUnavailableError,
    coco_categories,
    fetch_coco,
    load_strictly,
    official_weights,
    read_bundled,
    read_checkpoint,
    read_coco,
)

DEFAULT_TRAINABLE_LAYERS = 3
WeightsSource: TypeAlias = str | os.PathLike[str] | WeightsEnum


def fasterrcnn_resnet50_fpn(
    *,
    weights: WeightsSource | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: WeightsSource | None = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> FasterRCNN:
    """Build a Faster R-CNN with a ResNet-50 FPN backbone, equal to torchvision's function of this name.

    Args:
        weights: None for untrained, "COCO_V1" (or torchvision's enum member) for the official checkpoint, "bundled"
            for the package's own detector of blood cells, or the path of a file of weights. Excludes
            `weights_backbone`, which is then ignored.
        progress: show a bar while fetching.
        num_classes: K, background included. By default 91, or as many as the weights have.
        weights_backbone: None, "IMAGENET1K_V1" or "IMAGENET1K_V2" (or torchvision's enum member), or a path, for a
            body trained on classification.
        trainable_backbone_layers: 0 to 5, counted from the output; 3 by default. Without any weights all 5 train.
        **kwargs: keywords of `FasterRCNN`. They win over those that a checkpoint carries.

    Returns:
        The model in training mode, as torchvision returns it. Batch norm is frozen if weights are given, else live.

    Raises:
        ValueError: `num_classes` contradicts the weights, or an argument is out of range.
        WeightsError: the weights cannot be read or do not fit.
        WeightsUnavailableError: the official weights cannot be fetched.
    """
    if weights is not None:
        checkpoint = _resolve(weights, progress)
        if num_classes is not None and num_classes != checkpoint.num_classes:
            raise ValueError(f"num_classes is {num_classes}, but the weights have {checkpoint.num_classes} classes")
        return from_checkpoint(checkpoint, trainable_backbone_layers=trainable_backbone_layers, **kwargs)
    body = resnet50_body(frozen_norm=weights_backbone is not None)
    if weights_backbone is not None:
        _load_backbone(body, weights_backbone, progress)
    elif trainable_backbone_layers is not None:
        warnings.warn(
            "trainable_backbone_layers means nothing without weights: all five train", UserWarning, stacklevel=2
        )
    trainable = _trainable(trainable_backbone_layers) if weights_backbone is not None else 5
    if num_classes is None and kwargs.get("box_predictor") is None:
        num_classes = len(coco_categories())
    return FasterRCNN(resnet_fpn(body, trainable_layers=trainable), num_classes, **kwargs)


def from_checkpoint(
    checkpoint: Checkpoint,
    *,
    trainable_backbone_layers: int | None = None,
    frozen_norm: bool = True,
    **kwargs: Any,
) -> FasterRCNN:
    """Build the detector that a checkpoint describes and load it strictly.

    Args:
        frozen_norm: batch norm is constant; else it goes on learning, which needs large batches.

    Raises:
        WeightsError: the checkpoint does not fit.
    """
    body = resnet50_body(frozen_norm=frozen_norm, norm_eps=checkpoint.info.norm_eps)
    backbone = resnet_fpn(body, trainable_layers=_trainable(trainable_backbone_layers))
    arguments = checkpoint.info.model_kwargs | kwargs
    num_classes = None if arguments.get("box_predictor") is not None else checkpoint.num_classes
    try:
        model = FasterRCNN(backbone, num_classes, **arguments)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{checkpoint.name} asks for a detector that cannot be built: {error}") from error
    load_strictly(model, checkpoint.state_dict, source=checkpoint.name)
    return model


def random_checkpoint(seed: int = 0) -> Checkpoint:
    """Untrained weights, the same for the same seed: they exercise the machinery, and what they find means nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = resnet50_body(frozen_norm=True)
        model = FasterRCNN(resnet_fpn(body, trainable_layers=5), len(coco_categories()))
    return Checkpoint(name=RANDOM, state_dict=model.state_dict(), info=CheckpointInfo())


def resolve_checkpoint(
    name: str, *, timeout_s: float = 30.0, tell: Callable[[str], None] = lambda _: None
) -> Checkpoint:
    """The checkpoint that a `--weights` argument means: COCO_V1, bundled, random, a path, or "auto".

    Args:
        timeout_s: how long "auto" tries to fetch COCO_V1 before it falls back to the bundled weights.
        tell: is told of that, and why.

    Raises:
        WeightsError: a file that is missing or unreadable, or weights that this installation lacks.
        WeightsUnavailableError: COCO_V1 was asked for by name and cannot be had.
    """
    if name == AUTO:
        try:
            fetch_coco(timeout_s=timeout_s)
            return read_coco()
        except WeightsUnavailableError as error:
            tell(str(error))
        checkpoint = read_bundled()
        tell(f"the bundled weights are used instead, for {', '.join(checkpoint.categories.objects().values())}")
        return checkpoint
    return random_checkpoint() if name == RANDOM else _resolve(name, True)


def _resolve(weights: WeightsSource, progress: bool) -> Checkpoint:
    if isinstance(weights, WeightsEnum):
        weights = weights.name
    if weights in (COCO_V1, "DEFAULT"):
        return read_coco(progress=progress)
    if weights == BUNDLED:
        return read_bundled()
    return read_checkpoint(weights)


def _load_backbone(body: ResNet, weights: WeightsSource, progress: bool) -> None:
    if isinstance(weights, WeightsEnum):
        weights = weights.name
    is_file = isinstance(weights, os.PathLike) or Path(weights).suffix in {".pth", ".pt", ".safetensors"}
    path = Path(weights) if is_file else fetch(official_weights("resnet50", str(weights)).url, progress=progress)
    checkpoint = read_checkpoint(path)
    # A classifier's last layer has no place in a detector.
    tensors = {key: tensor for key, tensor in checkpoint.state_dict.items() if not key.startswith("fc.")}
    load_strictly(body, tensors, source=checkpoint.name)


def _trainable(layers: int | None) -> int:
    return DEFAULT_TRAINABLE_LAYERS if layers is None else layers
