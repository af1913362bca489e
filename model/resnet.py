"""ResNet-50 without its classifier (He et al. 2015), as detectors use it.

The stride of a downsampling block sits in its 3x3 convolution and not in the first 1x1 ("ResNet V1.5"), as in
torchvision. Parameter names are torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NormLayer = Callable[[int], nn.Module]


class _NarrowNorm(torch.autograd.Function):
    """Frozen batch norm of bf16 or fp16, as under autocast: float32 inside, and the input's kind outside.

    In one pass over the input, which the gradient does not need again: it is the gradient of the output, scaled.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(weight, var)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, var = ctx.saved_tensors
        zeros = torch.zeros_like(var)
        return F.batch_norm(gradient, zeros, var, weight, zeros, eps=ctx.eps), None, None, None, None, None


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine parameters are constants: y = x * scale + shift per channel.

    Detectors are fine-tuned on batches too small for statistics of their own. All four tensors are buffers, with
    the names of `nn.BatchNorm2d`'s, so checkpoints of either load into the other.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        nn.Module.register_load_state_dict_pre_hook(self, _drop_batch_counter)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in {torch.bfloat16, torch.float16} and self.weight.dtype == torch.float32:
            narrow: Tensor = _NarrowNorm.apply(x, self.weight, self.bias, self.running_mean, self.running_var, self.eps)
            return narrow
        # By torchvision's operations, so that a detector equals its own to the last bit.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


def _drop_batch_counter(_module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Live batch norm also stores how many batches it has seen, which means nothing to a frozen one."""
    state_dict.pop(f"{prefix}num_batches_tracked", None)


class Bottleneck(nn.Module):
    """1x1 reduce, 3x3 (carrying the stride), 1x1 expand by four, plus the identity or a projected shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, *, stride: int, project: bool, norm_layer: NormLayer) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.bn1 = norm_layer(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = norm_layer(width)
        self.conv3 = nn.Conv2d(width, out_channels, kernel_size=1, bias=False)
        self.bn3 = norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                norm_layer(out_channels),
            )
            if project
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += shortcut
        activated: Tensor = self.relu(out)
        return activated


class ResNet(nn.Module):
    """The four stages of a bottleneck ResNet; by default ResNet-50. Stage k is the child `layer{k}`.

    `[N, 3, H, W]` to `[N, 2048, ceil(H / 32), ceil(W / 32)]`.
    """

    def __init__(
        self, blocks_per_stage: tuple[int, int, int, int] = (3, 4, 6, 3), *, norm_layer: NormLayer = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.stage_channels: list[int] = []
        in_channels = 64
        for stage, blocks in enumerate(blocks_per_stage):
            layer = _stage(in_channels, 64 * 2**stage, blocks, 1 if stage == 0 else 2, norm_layer)
            self.add_module(f"layer{stage + 1}", layer)
            in_channels = 64 * 2**stage * Bottleneck.expansion
            self.stage_channels.append(in_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x


def _stage(in_channels: int, width: int, blocks: int, stride: int, norm_layer: NormLayer) -> nn.Sequential:
    out_channels = width * Bottleneck.expansion
    first = Bottleneck(in_channels, width, stride=stride, project=True, norm_layer=norm_layer)
    rest = [Bottleneck(out_channels, width, stride=1, project=False, norm_layer=norm_layer) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
