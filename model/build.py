"""Composition root: the one place that puts a Faster R-CNN ResNet-50 FPN together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torchvision.models._api import WeightsEnum

from model.architectures import FASTERRCNN_RESNET50_FPN, FASTERRCNN_RESNET50_FPN_V2, Architecture
from model.backbone import batch_norm, resnet50_body
from model.faster_rcnn import FasterRCNN
from model.resnet import ResNet
from model.weights.checkpoints import (
    Checkpoint,
    CheckpointInfo,
    WeightsError,
    WeightsUnavailableError,
    check_architecture,
    coco_categories,
    fetch_coco,
    load_strictly,
    official_weights,
    read_bundled,
    read_checkpoint,
    read_coco,
)
from model.weights.download import fetch
from model.weights.names import AUTO, BUNDLED, COCO_V1, RANDOM, TORCH_SUFFIXES

DEFAULT_TRAINABLE_LAYERS = 3
WeightsSource: TypeAlias = str | os.PathLike[str] | WeightsEnum
# Some functions of `torch.nn.init` can be replaced themselves, and of the others what they call.
_RANDOM = frozenset(
    {
        torch.nn.init.uniform_,
        torch.nn.init.normal_,
        torch.nn.init.kaiming_uniform_,
        Tensor.uniform_,
        Tensor.normal_,
    }
)


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
        progress: show on standard error how far a fetch is.
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
    return _build(
        FASTERRCNN_RESNET50_FPN,
        weights=weights,
        progress=progress,
        num_classes=num_classes,
        weights_backbone=weights_backbone,
        trainable_backbone_layers=trainable_backbone_layers,
        **kwargs,
    )


def fasterrcnn_resnet50_fpn_v2(
    *,
    weights: WeightsSource | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: WeightsSource | None = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> FasterRCNN:
    """Build the second version of the detector, equal to torchvision's function of this name.

    It finds more than `fasterrcnn_resnet50_fpn` (COCO AP 46.7 instead of 37.0, as published) and takes longer.
    `model.architectures` says how it differs. Batch norm is live, also if weights are given.

    Args, returns, raises: as for `fasterrcnn_resnet50_fpn`. "bundled" is not of this architecture.
    """
    return _build(
        FASTERRCNN_RESNET50_FPN_V2,
        weights=weights,
        progress=progress,
        num_classes=num_classes,
        weights_backbone=weights_backbone,
        trainable_backbone_layers=trainable_backbone_layers,
        **kwargs,
    )


def _build(
    architecture: Architecture,
    *,
    weights: WeightsSource | None,
    progress: bool,
    num_classes: int | None,
    weights_backbone: WeightsSource | None,
    trainable_backbone_layers: int | None,
    **kwargs: Any,
) -> FasterRCNN:
    if weights is not None:
        return from_checkpoint(
            _fitting(_resolve(weights, architecture, progress=progress), architecture, num_classes),
            trainable_backbone_layers=trainable_backbone_layers,
            **kwargs,
        )
    if weights_backbone is None and trainable_backbone_layers is not None:
        warnings.warn(
            "trainable_backbone_layers means nothing without weights: all five train", UserWarning, stacklevel=3
        )
    if num_classes is None and kwargs.get("box_predictor") is None:
        num_classes = len(coco_categories())
    frozen = architecture.frozen_norm and weights_backbone is not None
    return architecture.build(
        _loaded(resnet50_body(frozen_norm=frozen), weights_backbone, progress=progress),
        num_classes,
        norm_layer=batch_norm(frozen=frozen),
        trainable_layers=5 if weights_backbone is None else _trainable(trainable_backbone_layers),
        **kwargs,
    )


def _fitting(checkpoint: Checkpoint, architecture: Architecture, num_classes: int | None) -> Checkpoint:
    """The checkpoint, if it is of this architecture and has as many classes, where a number is given."""
    check_architecture(checkpoint, architecture)
    if num_classes is not None and num_classes != checkpoint.num_classes:
        raise ValueError(f"num_classes is {num_classes}, but the weights have {checkpoint.num_classes} classes")
    return checkpoint


def untrained(architecture: Architecture, *, num_classes: int, **kwargs: Any) -> FasterRCNN:
    """Build a detector of this architecture without weights, as its public function does."""
    return _build(
        architecture,
        weights=None,
        progress=False,
        num_classes=num_classes,
        weights_backbone=None,
        trainable_backbone_layers=None,
        **kwargs,
    )


def from_checkpoint(
    checkpoint: Checkpoint,
    *,
    trainable_backbone_layers: int | None = None,
    frozen_norm: bool | None = None,
    **kwargs: Any,
) -> FasterRCNN:
    """Build the detector that a checkpoint describes and load it strictly.

    Args:
        frozen_norm: whether batch norm is constant, or learns on, which needs large batches; by default as in
            torchvision's function of the checkpoint's architecture.

    Raises:
        WeightsError: the checkpoint does not fit.
    """
    architecture = checkpoint.architecture
    frozen = architecture.frozen_norm if frozen_norm is None else frozen_norm
    eps = checkpoint.info.norm_eps
    arguments = checkpoint.info.model_kwargs | kwargs
    num_classes = None if arguments.get("box_predictor") is not None else checkpoint.num_classes
    try:
        with _Uninitialised():
            model = architecture.build(
                resnet50_body(frozen_norm=frozen, norm_eps=eps),
                num_classes,
                norm_layer=batch_norm(frozen=frozen, eps=eps),
                trainable_layers=_trainable(trainable_backbone_layers),
                **arguments,
            )
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{checkpoint.name} asks for a detector that cannot be built: {error}") from error
    load_strictly(model, checkpoint.state_dict, source=checkpoint.name)
    return model


class _Uninitialised(TorchFunctionMode):
    """Leaves out the values that layers begin with, which are random and take time: a checkpoint replaces them all."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _RANDOM:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def random_checkpoint(seed: int = 0, architecture: Architecture = FASTERRCNN_RESNET50_FPN) -> Checkpoint:
    """Untrained weights, the same for the same seed: they exercise the machinery, and what they find means nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = architecture.build(
            resnet50_body(frozen_norm=True),
            len(coco_categories()),
            norm_layer=batch_norm(frozen=True),
            trainable_layers=5,
        )
    return Checkpoint(name=RANDOM, state_dict=model.state_dict(), info=CheckpointInfo())


def resolve_checkpoint(
    name: str,
    architecture: Architecture | None = None,
    *,
    timeout_s: float = 30.0,
    tell: Callable[[str], None] = lambda _: None,
) -> Checkpoint:
    """The checkpoint that a `--weights` argument means: COCO_V1, bundled, random, a path, or "auto".

    Args:
        name: the argument.
        architecture: which detector it is for. None takes that of the file, and `fasterrcnn_resnet50_fpn` for a name.
        timeout_s: how long "auto" tries to fetch COCO_V1 before it falls back to the bundled weights.
        tell: called with a sentence when "auto" falls back.

    Raises:
        WeightsError: a file is missing, unreadable or of another architecture, or this installation lacks the weights.
        WeightsUnavailableError: COCO_V1 was asked for by name and cannot be fetched.
    """
    checkpoint = _named(name, architecture or FASTERRCNN_RESNET50_FPN, timeout_s=timeout_s, tell=tell)
    if architecture is not None:
        check_architecture(checkpoint, architecture)
    return checkpoint


def _named(name: str, architecture: Architecture, *, timeout_s: float, tell: Callable[[str], None]) -> Checkpoint:
    if name == RANDOM:
        return random_checkpoint(architecture=architecture)
    if name != AUTO:
        return _resolve(name, architecture, progress=True)
    try:
        fetch_coco(architecture, timeout_s=timeout_s)
        return read_coco(architecture)
    except WeightsUnavailableError as error:
        if architecture is not FASTERRCNN_RESNET50_FPN:  # the bundled weights do not fit
            raise
        checkpoint = read_bundled()
        names = ", ".join(checkpoint.categories.objects().values())
        tell(
            f"{str(error).splitlines()[0]}; the bundled weights are used instead, which find only {names}. "
            "`frcnn weights fetch` says what to do"
        )
        return checkpoint


def _resolve(weights: WeightsSource, architecture: Architecture, *, progress: bool) -> Checkpoint:
    if isinstance(weights, WeightsEnum):
        weights = weights.name
    if weights in (COCO_V1, "DEFAULT"):
        return read_coco(architecture, progress=progress)
    if weights == BUNDLED:
        return read_bundled()
    return read_checkpoint(weights)


def _loaded(body: ResNet, weights: WeightsSource | None, *, progress: bool) -> ResNet:
    """The body with the weights of a classifier, if any are given."""
    if weights is None:
        return body
    if isinstance(weights, WeightsEnum):
        weights = weights.name
    is_file = isinstance(weights, os.PathLike) or Path(weights).suffix.lower() in {".safetensors", *TORCH_SUFFIXES}
    path = Path(weights) if is_file else fetch(official_weights("resnet50", str(weights)).url, progress=progress)
    checkpoint = read_checkpoint(path)
    # A classifier's last layer has no place in a detector.
    tensors = {key: tensor for key, tensor in checkpoint.state_dict.items() if not key.startswith("fc.")}
    load_strictly(body, tensors, source=checkpoint.name)
    return body


def _trainable(layers: int | None) -> int:
    return DEFAULT_TRAINABLE_LAYERS if layers is None else layers
