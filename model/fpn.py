"""Feature pyramid network (Lin et al. 2017): every level with the same channels, strong semantics and fine detail."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class ExtraFPNBlock(nn.Module):
    """Interface of a block that appends levels to the pyramid."""

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Return the pyramid's levels and their names, extended.

        Args:
            results: the pyramid so far, finest first.
            x: the body's feature maps that the pyramid was made from.
            names: the names of the levels in `results`.
        """
        raise NotImplementedError


class LastLevelMaxPool(ExtraFPNBlock):
    """P6, named "pool": the coarsest level subsampled by two. Only the RPN uses it, for its 512 px anchors."""

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        return [*results, F.max_pool2d(results[-1], kernel_size=1, stride=2)], [*names, "pool"]


class FeaturePyramidNetwork(nn.Module):
    """Lateral 1x1 convolutions, a nearest-neighbour top-down path, and a 3x3 convolution on each sum.

    Args:
        in_channels_list: channels of the body's feature maps, finest first.
        out_channels: channels of every pyramid level.
        extra_blocks: appends coarser levels, if given.
        norm_layer: normalises after each convolution, which then has no bias; None for no norm.
    """

    def __init__(
        self,
        in_channels_list: Sequence[int],
        out_channels: int,
        extra_blocks: ExtraFPNBlock | None = None,
        norm_layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if not in_channels_list or min(in_channels_list) <= 0:
            raise ValueError(f"in_channels_list must hold positive channel counts, not {list(in_channels_list)}")
        self.inner_blocks = nn.ModuleList(
            _conv_block(channels, out_channels, 1, norm_layer) for channels in in_channels_list
        )
        self.layer_blocks = nn.ModuleList(
            _conv_block(out_channels, out_channels, 3, norm_layer) for _ in in_channels_list
        )
        self.extra_blocks = extra_blocks

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """Feature maps by name, finest first, to pyramid levels by the same names, then the extra ones."""
        names, features = list(x), list(x.values())
        inner = self.inner_blocks[-1](features[-1])
        results = [self.layer_blocks[-1](inner)]
        for level in range(len(features) - 2, -1, -1):
            lateral = self.inner_blocks[level](features[level])
            inner = lateral + F.interpolate(inner, size=lateral.shape[-2:], mode="nearest")
            results.insert(0, self.layer_blocks[level](inner))
        if self.extra_blocks is not None:
            results, names = self.extra_blocks(results, features, names)
        return OrderedDict(zip(names, results, strict=True))


def _conv_block(
    in_channels: int, out_channels: int, kernel_size: int, norm_layer: Callable[[int], nn.Module] | None
) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=norm_layer is None)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(conv) if norm_layer is None else nn.Sequential(conv, norm_layer(out_channels))
