"""The oracle, torchvision's own detector, and pairs of it and ours with one state dict that finds things."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
import torchvision.models.detection as oracle
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model import fasterrcnn_resnet50_fpn
from model.faster_rcnn import FasterRCNN

StateDict = dict[str, Tensor]
STAGES = ("transform", "backbone", "rpn.head", "rpn.anchor_generator", "rpn", "roi_heads.box_roi_pool")


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Soft blobs under noise: every place looks different, as in a photograph. `[3, H, W]` in 0..1."""
    generator = torch.Generator().manual_seed(seed + 1000 * height + width)
    blobs = torch.rand(1, 3, max(height // 16, 1), max(width // 16, 1), generator=generator)
    smooth = nn.functional.interpolate(blobs, size=(height, width), mode="bilinear")[0]
    return 0.8 * smooth + 0.2 * torch.rand(3, height, width, generator=generator)


@contextlib.contextmanager
def _layers_rescaled(model: nn.Module, spreads: dict[str, float]) -> Iterator[None]:
    """Scale the weights of the named layers so that what they say of the next images has the given spread."""

    def rescale(layer: nn.Module, _inputs: Any, output: Tensor, *, spread: float, done: set[nn.Module]) -> Tensor:
        factor = 1.0 if layer in done else spread / float(output.std())
        done.add(layer)
        layer.weight.data.mul_(factor)
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
def _make_opinionated(model: nn.Module) -> None:
    """Give an untrained torchvision detector batch norms that do something, and outputs far from indifferent."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.1)
            module.momentum = 1.0  # so that one pass sets the running statistics
    model.backbone.train()
    model.backbone(torch.stack([picture(160, 192, seed) for seed in range(2)]) * 4 - 2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
            module.num_batches_tracked.fill_(1)
    model.eval()
    spreads = {
        "rpn.head.cls_logits": 2.0,
        "rpn.head.bbox_pred": 0.3,
        "roi_heads.box_predictor.cls_score": 2.0,
        "roi_heads.box_predictor.bbox_pred": 1.0,
    }
    with _layers_rescaled(model, spreads):
        model([picture(160, 192, seed=2)])


@pytest.fixture(scope="session")
def opinionated_state() -> Callable[[int], StateDict]:
    """State dict, by number of classes, of a detector that finds things; live batch norm's keys."""

    @functools.cache
    def state(num_classes: int) -> StateDict:
        torch.manual_seed(20_000 + num_classes)
        model = oracle.fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=num_classes, min_size=160, max_size=320
        )
        _make_opinionated(model)
        return model.state_dict()

    return state


Pair = tuple[nn.Module, FasterRCNN]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from a second thread, and lose much where another process has its core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextlib.contextmanager
def _without_initialisation() -> Iterator[None]:
    """Leave new weights as they come, since a state dict will overwrite them: building is several times faster."""
    names = ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_")
    with mock.patch.multiple(nn.init, **{name: lambda tensor, *_args, **_kwargs: tensor for name in names}):
        yield


@pytest.fixture(scope="session")
def make_pair(opinionated_state: Callable[[int], StateDict]) -> Callable[..., Pair]:
    """`(oracle, ours)` with the same keywords and the same weights, both in eval mode."""

    def make(num_classes: int = 11, **kwargs: Any) -> Pair:
        state = opinionated_state(num_classes)
        with _without_initialisation():
            theirs = oracle.fasterrcnn_resnet50_fpn(
                weights=None, weights_backbone=None, num_classes=num_classes, **kwargs
            )
            ours = fasterrcnn_resnet50_fpn(num_classes=num_classes, **kwargs)
        theirs.load_state_dict(state)
        ours.load_state_dict(state)
        return theirs.eval(), ours.eval()

    return make


@pytest.fixture(scope="session")
def make_frozen_pair(opinionated_state: Callable[[int], StateDict]) -> Callable[..., Pair]:
    """The same with frozen batch norm of the given epsilon, as with official weights."""

    def make(num_classes: int = 11, *, eps: float = 1e-5, trainable_layers: int = 3, **kwargs: Any) -> Pair:
        from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
        from torchvision.ops import misc

        from model.build import from_checkpoint
        from model.weights.checkpoints import Checkpoint, CheckpointInfo

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

    return make


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


@pytest.fixture(scope="session")
def run_stages() -> Callable[[nn.Module, list[Tensor]], tuple[dict[str, list[Tensor]], list[dict[str, Tensor]]]]:
    """Detect, and catch what each stage gave, by hooks: `(tensors by stage, detections)`.

    The oracle and ours have the same submodules, so the same hooks serve both.
    """

    @torch.no_grad()
    def run(model: nn.Module, images: list[Tensor]) -> tuple[dict[str, list[Tensor]], list[dict[str, Tensor]]]:
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

    return run


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., Tensor]:
    return picture


@pytest.fixture(scope="session")
def make_opinionated() -> Callable[[nn.Module], None]:
    return _make_opinionated


_FACTORIES = {
    getattr(torch, name)
    for name in (
        *(
            "arange",
            "as_tensor",
            "bartlett_window",
            "blackman_window",
            "empty",
            "empty_permuted",
            "empty_strided",
            "eye",
        ),
        *("full", "hamming_window", "hann_window", "kaiser_window", "linspace", "logspace", "ones", "rand", "randint"),
        *("randn", "randperm", "range", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros"),
    )
}


class NoDefaultDevice(TorchFunctionMode):
    """Raise where our code creates a tensor without a device. Constructors of modules call factories too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        takes_device_of_input = func is torch.as_tensor and isinstance(args[0], torch.Tensor)
        if func in _FACTORIES and kwargs.get("device") is None and not takes_device_of_input:
            # torchvision's operators bring such tensors to the device of their input.
            caller = sys._getframe(1).f_globals["__name__"]
            assert caller.startswith("torchvision."), f"{caller} calls torch.{func.__name__} without a device"
        return func(*args, **kwargs)


@pytest.fixture(scope="session")
def no_default_device() -> type[NoDefaultDevice]:
    """`with no_default_device():` rejects every tensor that is created without a device."""
    return NoDefaultDevice
