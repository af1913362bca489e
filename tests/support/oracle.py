"""The oracle, torchvision's own detector, and pairs of it and ours with one state dict that finds things."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
import torchvision.models.detection as oracle
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import misc

from model import fasterrcnn_resnet50_fpn
from model.build import from_checkpoint
from model.faster_rcnn import FasterRCNN
from model.roi_pool import MultiScaleRoIAlign
from model.weights.checkpoints import Checkpoint, CheckpointInfo

StateDict = dict[str, Tensor]
STRIDES = (4, 8, 16, 32)  # of the pyramid
STAGES = ("transform", "backbone", "rpn.head", "rpn.anchor_generator", "rpn", "roi_heads.box_roi_pool")


def blobs(height: int, width: int, seed: int = 0) -> Tensor:
    """Soft blobs under noise: every place looks different, as in a photograph. `[3, H, W]` in 0..1."""
    generator = torch.Generator().manual_seed(seed + 1000 * height + width)
    coarse = torch.rand(1, 3, max(height // 16, 1), max(width // 16, 1), generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    return 0.8 * smooth + 0.2 * torch.rand(3, height, width, generator=generator)


@contextlib.contextmanager
def _layers_rescaled(model: nn.Module, spreads: dict[str, float]) -> Iterator[None]:
    """Scale the weights of the named layers so that what they say of the next images has the given spread."""

    def rescale(layer: nn.Module, _inputs: Any, output: Tensor, *, spread: float, done: set[nn.Module]) -> Tensor:
        factor = 1.0 if layer in done else spread / float(output.std())
        done.add(layer)
        layer.get_parameter("weight").data.mul_(factor)
        return output * factor

    done: set[nn.Module] = set()
    handles = [
        model.get_submodule(name).register_forward_hook(functools.partial(rescale, spread=spread, done=done))
        for name, spread in spreads.items()
    ]
    yield
    for handle in handles:
        handle.remove()


@torch.no_grad()
def make_opinionated(model: nn.Module) -> None:
    """Give an untrained torchvision detector batch norms that do something, and outputs far from indifferent."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.1)
            module.momentum = 1.0  # so that one pass sets the running statistics
    backbone = model.get_submodule("backbone").train()
    backbone(torch.stack([blobs(160, 192, seed) for seed in range(2)]) * 4 - 2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
            module.get_buffer("num_batches_tracked").fill_(1)
    model.eval()
    spreads = {
        "rpn.head.cls_logits": 2.0,
        "rpn.head.bbox_pred": 0.3,
        "roi_heads.box_predictor.cls_score": 2.0,
        "roi_heads.box_predictor.bbox_pred": 1.0,
    }
    with _layers_rescaled(model, spreads):
        model([blobs(160, 192, seed=2)])


@functools.cache
def opinionated_state(num_classes: int) -> StateDict:
    """Make the state dict of a detector that finds things; live batch norm's keys."""
    with torch.random.fork_rng(devices=()):  # a test's own numbers stay those of its seed
        torch.manual_seed(20_000 + num_classes)
        model = oracle.fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=num_classes, min_size=160, max_size=320
        )
        make_opinionated(model)
    return dict(model.state_dict())


Pair = tuple[oracle.FasterRCNN, FasterRCNN]


@contextlib.contextmanager
def _without_initialisation() -> Iterator[None]:
    """Leave new weights as they come, since a state dict will overwrite them: building is several times faster."""
    names = ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_")
    with contextlib.ExitStack() as patches:
        for name in names:
            patches.enter_context(mock.patch.object(nn.init, name, lambda tensor, *_args, **_kwargs: tensor))
        yield


def make_pair(num_classes: int = 11, **kwargs: Any) -> Pair:
    """Make `(oracle, ours)` with the same keywords and the same weights, both in eval mode."""
    state = opinionated_state(num_classes)
    with _without_initialisation():
        theirs = oracle.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=num_classes, **kwargs)
        ours = fasterrcnn_resnet50_fpn(num_classes=num_classes, **kwargs)
    theirs.load_state_dict(state)
    ours.load_state_dict(state)
    return theirs.eval(), ours.eval()


def make_frozen_pair(num_classes: int = 11, *, eps: float = 1e-5, trainable_layers: int = 3, **kwargs: Any) -> Pair:
    """Make the same with frozen batch norm of the given epsilon, as with official weights."""
    state = opinionated_state(num_classes)
    with _without_initialisation():
        backbone = resnet_fpn_backbone(
            backbone_name="resnet50",
            weights=None,
            norm_layer=functools.partial(misc.FrozenBatchNorm2d, eps=eps),
            trainable_layers=trainable_layers,
        )
        theirs = oracle.FasterRCNN(backbone, num_classes, **kwargs)
        theirs.load_state_dict(state)
        checkpoint = Checkpoint(name="test", state_dict=state, info=CheckpointInfo(norm_eps=eps))
        ours = from_checkpoint(checkpoint, trainable_backbone_layers=trainable_layers, **kwargs)
    return theirs.eval(), ours.eval()


def pin_scales(model: FasterRCNN, strides: tuple[int, ...] = STRIDES) -> None:
    """Fix the scales of the RoI pooling, which a model otherwise infers from its first picture."""
    pool = model.roi_heads.box_roi_pool
    assert isinstance(pool, MultiScaleRoIAlign)
    pool.pin_scales(strides)


def _flat(output: Any) -> list[Tensor]:
    """Every tensor in a stage's output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if hasattr(output, "image_sizes"):  # the transform's batch
        return [output.tensors, torch.tensor([list(size) for size in output.image_sizes])]
    if isinstance(output, dict):
        return [tensor for value in output.values() for tensor in _flat(value)]
    assert isinstance(output, Sequence)
    return [tensor for value in output if value is not None for tensor in _flat(value)]


@torch.no_grad()
def run_stages(model: nn.Module, images: list[Tensor]) -> tuple[dict[str, list[Tensor]], list[dict[str, Tensor]]]:
    """Detect, and catch what each stage gave, by hooks: `(tensors by stage, detections)`.

    The oracle and ours have the same submodules, so the same hooks serve both.
    """
    caught: dict[str, list[Tensor]] = {}

    def catch(_module: nn.Module, _inputs: Any, output: Any, *, stage: str) -> None:
        # In place operations may follow, so what the stage gave is copied.
        caught[stage] = [tensor.clone() for tensor in _flat(output)]

    handles = [
        model.get_submodule(stage).register_forward_hook(functools.partial(catch, stage=stage))
        for stage in (*STAGES, "roi_heads.box_predictor")
    ]
    try:
        return caught, model(images)
    finally:
        for handle in handles:
            handle.remove()
