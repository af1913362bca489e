"""The part of the detector whose work depends on nothing but the shape of its input: body, pyramid, RPN head.

N images, L levels, A anchors per cell. A `Network` is made from a `FasterRCNN` for one backend and precision; what
follows it (proposals, RoI heads) is the same for all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbone import BackboneWithFPN
from model.faster_rcnn import FasterRCNN
from model.fpn import LastLevelMaxPool
from model.inference.fused_conv import FusedConv, Layers, folded, layers_for
from model.resnet import Bottleneck
from model.rpn import RPNHead


class NetworkOutput(NamedTuple):
    """What the network makes of a batch. Channels are last: a cell's numbers lie side by side."""

    levels: list[Tensor]  # the pyramid, finest first, without the RPN's extra level: [N, H, W, C]
    predictions: list[Tensor]  # per level, the extra one too: [N, H, W, A * 5], A logits and then A times 4 deltas


class Network(Protocol):
    """The seam between the backends and the rest of the detector."""

    def __call__(self, images: Tensor) -> NetworkOutput:
        """`[N, 3, H, W]` float32, normalised; H and W multiples of 32."""
        ...


class UnsupportedModelError(TypeError):
    """The detector is built of other parts than a ResNet of bottlenecks with a pyramid."""


_BODY = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]


class TorchNetwork(nn.Module):
    """Folded convolutions, channels last, in float32 or half precision, by torch itself.

    Args:
        model: in eval mode; its weights are copied.
        dtype: of the arithmetic.
        layers: computes the layers; by default as the model's device does without Triton.

    Raises:
        UnsupportedModelError: the parts are not those of a detector in `model.architectures`.
    """

    def __init__(self, model: FasterRCNN, dtype: torch.dtype = torch.float32, *, layers: Layers | None = None) -> None:
        super().__init__()
        backbone, head = model.backbone, model.rpn.head
        if not isinstance(backbone, BackboneWithFPN) or not isinstance(head, RPNHead):
            raise UnsupportedModelError("only a ResNet with a feature pyramid and a plain RPN head has a serving form")
        self.dtype = dtype
        body, fpn = backbone.body, backbone.fpn
        if list(body) != _BODY or not isinstance(fpn.extra_blocks, LastLevelMaxPool):
            raise UnsupportedModelError(f"the body's parts are {list(body)}, not {_BODY}")
        layers = self.layers = layers or layers_for(head.cls_logits.weight.device, dtype)
        conv = functools.partial(FusedConv, dtype=dtype, layers=layers)
        self.stem = conv(cast(nn.Conv2d, body["conv1"]), body["bn1"], relu=True)
        stages = [cast(nn.Sequential, body[name]) for name in _BODY if name.startswith("layer")]
        self.stages = nn.ModuleList(
            nn.Sequential(*(_FoldedBottleneck(cast(Bottleneck, block), conv) for block in stage)) for stage in stages
        )
        self.laterals = nn.ModuleList(conv(*_conv_and_norm(block), relu=False) for block in fpn.inner_blocks)
        self.smooths = nn.ModuleList(conv(*_conv_and_norm(block), relu=False) for block in fpn.layer_blocks)
        self.hidden = nn.ModuleList(
            conv(cast(nn.Conv2d, cast(nn.Sequential, block)[0]), relu=True) for block in head.conv
        )
        self.predictor = conv(_joined(head.cls_logits, head.bbox_pred, multiple=layers.channel_multiple), relu=False)
        self._predicted = head.cls_logits.out_channels + head.bbox_pred.out_channels  # without what is padded

    def forward(self, images: Tensor) -> NetworkOutput:
        pyramid = self._pyramid(images.to(self.dtype).contiguous(memory_format=torch.channels_last))
        extra = F.max_pool2d(pyramid[-1], kernel_size=1, stride=2)
        return NetworkOutput(
            levels=[_channels_last_view(level) for level in pyramid],
            predictions=[
                _channels_last_view(self._predict(level))[..., : self._predicted] for level in [*pyramid, extra]
            ],
        )

    def _pyramid(self, x: Tensor) -> list[Tensor]:
        x = self.layers.max_pool(self.stem(x))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        *finer, (coarsest, lateral, smooth) = zip(features, self.laterals, self.smooths, strict=True)
        merged = lateral(coarsest)
        levels = [smooth(merged)]
        for maps, lateral, smooth in reversed(finer):
            merged = lateral(maps, coarser=merged)
            levels.insert(0, smooth(merged))
        return levels

    def _predict(self, level: Tensor) -> Tensor:
        for conv in self.hidden:
            level = conv(level)
        predictions: Tensor = self.predictor(level)
        return predictions


class _FoldedBottleneck(nn.Module):
    def __init__(self, block: Bottleneck, conv: Callable[..., FusedConv]) -> None:
        super().__init__()
        self.reduce = conv(block.conv1, block.bn1, relu=True)
        self.spatial = conv(block.conv2, block.bn2, relu=True)
        self.project, shortcut_bias = None, None
        if block.downsample is not None:
            # The shortcut is added to `expand`, so its bias is added to that of `expand`, and costs no pass of its own.
            shortcut = (cast(nn.Conv2d, block.downsample[0]), block.downsample[1])
            self.project = conv(*shortcut, relu=False, has_bias=False)
            _, shortcut_bias = folded(*shortcut)
        self.expand = conv(block.conv3, block.bn3, relu=True, more_bias=shortcut_bias)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.project is None else self.project(x)
        activated: Tensor = self.expand(self.spatial(self.reduce(x)), shortcut)
        return activated


def _conv_and_norm(block: nn.Module) -> tuple[nn.Conv2d, nn.Module | None]:
    """The parts of a block of the pyramid; None without norm."""
    if not isinstance(block, nn.Sequential) or len(block) not in {1, 2} or not isinstance(block[0], nn.Conv2d):
        raise UnsupportedModelError("a pyramid of other blocks than a convolution and a norm has no serving form")
    return block[0], block[1] if len(block) == 2 else None


def _joined(*convs: nn.Conv2d, multiple: int) -> nn.Conv2d:
    """One 1x1 convolution with the output channels of all, so that their input is read once.

    Channels of zeros follow, so that their number is a multiple.
    """
    channels = sum(conv.out_channels for conv in convs)
    padded = -(-channels // multiple) * multiple
    joined = nn.Conv2d(convs[0].in_channels, padded, kernel_size=1, device=convs[0].weight.device)
    assert joined.bias is not None
    with torch.no_grad():
        for whole, parts in ((joined.weight, [c.weight for c in convs]), (joined.bias, [c.bias for c in convs])):
            whole.zero_()[:channels] = torch.cat([cast(Tensor, part) for part in parts])
    return joined


def _channels_last_view(maps: Tensor) -> Tensor:
    """`[N, C, H, W]`, which lies in memory with its channels last, as `[N, H, W, C]`."""
    return maps.permute(0, 2, 3, 1).contiguous()
