"""The backbone: a convolutional body, the feature maps picked from it, and the pyramid built on them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from model.fpn import ExtraFPNBlock, FeaturePyramidNetwork, LastLevelMaxPool
from model.resnet import FrozenBatchNorm2d, NormLayer, ResNet

# From the output backwards: the order in which training thaws a pretrained body.
_STAGES_FROM_THE_END = ("layer4", "layer3", "layer2", "layer1", "conv1")


class IntermediateLayerGetter(nn.ModuleDict):
    """Run a model's children in order and return the outputs of some of them.

    Children after the last wanted one are dropped, so their parameters are neither held nor computed.

    Args:
        model: its children must be called one after the other in its `forward`.
        return_layers: child name to the name its output gets in the result.
    """

    def __init__(self, model: nn.Module, return_layers: dict[str, str]) -> None:
        children = OrderedDict(model.named_children())
        if unknown := set(return_layers) - set(children):
            raise ValueError(f"the model has no children named {sorted(unknown)}; it has {list(children)}")
        names = list(children)
        last = max(names.index(name) for name in return_layers)
        super().__init__({name: children[name] for name in names[: last + 1]})
        self.return_layers = dict(return_layers)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs: OrderedDict[str, Tensor] = OrderedDict()
        for name, child in self.items():
            x = child(x)
            if name in self.return_layers:
                outputs[self.return_layers[name]] = x
        return outputs


class BackboneWithFPN(nn.Module):
    """A body's intermediate feature maps, turned into a pyramid.

    Args:
        backbone: the body.
        return_layers: which of its children feed the pyramid, and the names of the levels.
        in_channels_list: channels of those feature maps.
        out_channels: channels of every pyramid level; kept as an attribute, which `FasterRCNN` reads.
        extra_blocks: by default P6 by max-pooling.
    """

    def __init__(
        self,
        backbone: nn.Module,
        return_layers: dict[str, str],
        in_channels_list: Sequence[int],
        out_channels: int,
        extra_blocks: ExtraFPNBlock | None = None,
        norm_layer: NormLayer | None = None,
    ) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(backbone, return_layers)
        self.fpn = FeaturePyramidNetwork(in_channels_list, out_channels, extra_blocks or LastLevelMaxPool(), norm_layer)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """`[N, 3, H, W]` to levels "0" to "3" at strides 4 to 32 and "pool" at 64, `[N, out_channels, h, w]` each."""
        levels: dict[str, Tensor] = self.fpn(self.body(x))
        return levels


def resnet_fpn(
    body: ResNet,
    *,
    trainable_layers: int,
    returned_layers: Sequence[int] = (1, 2, 3, 4),
    out_channels: int = 256,
    extra_blocks: ExtraFPNBlock | None = None,
    norm_layer: NormLayer | None = None,
) -> BackboneWithFPN:
    """A pyramid on the chosen stages of a ResNet, the rest of the body frozen as asked.

    Args:
        body: the ResNet, with its weights loaded.
        trainable_layers: how many of layer4, layer3, layer2, layer1 and conv1 train, counted in this order;
            5 trains bn1 too.
        returned_layers: stages, 1 to 4, that become pyramid levels "0", "1", ...
        norm_layer: makes the norms of the pyramid; None for no norm.
    """
    if not 0 <= trainable_layers <= 5:
        raise ValueError(f"trainable_layers must be 0 to 5, not {trainable_layers}")
    if not returned_layers or not set(returned_layers) <= {1, 2, 3, 4}:
        raise ValueError(f"returned_layers must be stages 1 to 4, not {list(returned_layers)}")
    freeze_body(body, trainable_layers)
    return BackboneWithFPN(
        body,
        return_layers={f"layer{stage}": str(level) for level, stage in enumerate(returned_layers)},
        in_channels_list=[body.stage_channels[stage - 1] for stage in returned_layers],
        out_channels=out_channels,
        extra_blocks=extra_blocks,
        norm_layer=norm_layer,
    )


def freeze_body(body: nn.Module, trainable_layers: int) -> None:
    """Stop the gradients of all but the last `trainable_layers` stages (see `resnet_fpn`)."""
    trained = _STAGES_FROM_THE_END[:trainable_layers] + (("bn1",) if trainable_layers == 5 else ())
    for name, parameter in body.named_parameters():
        if not name.startswith(trained):
            parameter.requires_grad_(False)


def resnet50_body(*, frozen_norm: bool, norm_eps: float = 1e-5) -> ResNet:
    """An untrained ResNet-50 with frozen or live batch norm."""
    return ResNet(norm_layer=batch_norm(frozen=frozen_norm, eps=norm_eps))


def batch_norm(*, frozen: bool, eps: float = 1e-5) -> NormLayer:
    """What makes a batch norm for a number of channels: a constant one, or one that learns."""
    return partial(FrozenBatchNorm2d if frozen else nn.BatchNorm2d, eps=eps)
