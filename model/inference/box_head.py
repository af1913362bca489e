"""The box head as it is served: weights in the order in which RoIs are pooled, batch norm folded.

R proposals, h x w cells of a pooled RoI, C channels, D representation size. RoIs are pooled with channels last.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.inference.fused_conv import FusedConv, Layers
from model.inference.network import UnsupportedModelError
from model.roi_heads import FastRCNNConvFCHead, TwoMLPHead


class FoldedBoxHead(nn.Module):
    """Convolutions, if the head has any, then linear layers; ReLU after each.

    Args:
        head: in eval mode, a `TwoMLPHead` or a `FastRCNNConvFCHead`, which is not used any more.
        output_hw: h and w.
        dtype: of the weights and the arithmetic.
        layers: computes the convolutions.

    Raises:
        UnsupportedModelError: the head is of another kind.
    """

    def __init__(self, head: nn.Module, output_hw: tuple[int, int], *, dtype: torch.dtype, layers: Layers) -> None:
        super().__init__()
        if isinstance(head, TwoMLPHead):
            blocks, linears = [], [head.fc6, head.fc7]
        elif isinstance(head, FastRCNNConvFCHead):
            blocks = [module for module in head if isinstance(module, nn.Sequential)]
            linears = [module for module in head if isinstance(module, nn.Linear)]
        else:
            raise UnsupportedModelError(f"a box head of type {type(head).__name__} has no serving form")
        self._output_hw, self._dtype = output_hw, dtype
        self.convs = nn.ModuleList(
            FusedConv(
                cast(nn.Conv2d, block[0]),
                block[1] if len(block) > 2 else None,  # norm and ReLU follow, or ReLU alone
                relu=True,
                dtype=dtype,
                layers=layers,
            )
            for block in blocks
        )
        cells = output_hw[0] * output_hw[1]
        first = linears[0].weight.detach().unflatten(1, (-1, cells)).transpose(1, 2).flatten(1)  # columns as pooled
        self._linears = [
            (weight.to(dtype).contiguous(), linear.bias.detach().to(dtype))
            for weight, linear in zip([first, *(later.weight.detach() for later in linears[1:])], linears, strict=True)
        ]

    def forward(self, pooled: Tensor) -> Tensor:
        """`[R, h * w, C]` to `[R, D]`."""
        x = pooled.to(self._dtype)
        if not len(x):
            return x.new_empty(0, len(self._linears[-1][0]))
        if self.convs:
            maps = x.unflatten(1, self._output_hw).permute(0, 3, 1, 2)  # channels last in memory
            for conv in self.convs:
                maps = conv(maps)
            x = maps.permute(0, 2, 3, 1)
        x = x.flatten(1)
        for weight, bias in self._linears:
            x = F.linear(x, weight, bias).relu_()
        return x
