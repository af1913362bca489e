"""Convolution, constant batch norm, addition and ReLU as one layer, and the ways to compute it.

Batch norm with constant statistics is a scale and a shift per channel, which the convolution before it can do: the
scale goes into its weights, the shift becomes its bias. What follows (an addition, the ReLU) is done where the device
does it with the least traffic: see `Layers`.
"""

from __future__ import annotations

import functools
import logging
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.inference.memory import is_out_of_memory
from model.inference.precision import cpu_has_bfloat16
from model.resnet import FrozenBatchNorm2d

logger = logging.getLogger(__name__)

_Norm = FrozenBatchNorm2d | nn.BatchNorm2d


class Layers(Protocol):
    """One way to compute the network's layers. Maps are `[N, C, H, W]`, channels last in memory for speed."""

    channel_multiple: int  # pad the channels of a layer's output to a multiple of this where it may be padded

    def convolve(self, layer: FusedConv, x: Tensor, addend: Tensor | None, coarser: Tensor | None) -> Tensor:
        """See `FusedConv.forward`."""
        ...

    def max_pool(self, x: Tensor) -> Tensor:
        """The largest of each 3x3 neighbourhood with stride 2, padded by 1."""
        ...


class FusedConv(nn.Module):
    """y = relu(conv(x) + bias + addend + upsampled coarser), each part as it is there.

    Args:
        conv: its weights are copied.
        norm: batch norm in eval mode that follows it; folded in.
        relu: whether ReLU follows.
        dtype: of the weights and the arithmetic; folding is done in float64 before.
        layers: computes it.
        more_bias: float64 `[C]`, added to the bias.
        has_bias: False drops the bias, for a caller that adds it elsewhere.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: nn.Module | None = None,
        *,
        relu: bool,
        dtype: torch.dtype,
        layers: Layers,
        more_bias: Tensor | None = None,
        has_bias: bool = True,
    ) -> None:
        super().__init__()
        weight, bias = folded(conv, norm)
        if more_bias is not None:
            bias = bias + more_bias
        self.relu, self.layers = relu, layers
        if isinstance(conv.padding, str):
            raise ValueError(f"padding {conv.padding!r} is not in pixels")  # noqa: TRY004 - its value is at fault
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.register_buffer("weight", weight.to(dtype).contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias.to(dtype) if has_bias else None)

    def forward(self, x: Tensor, addend: Tensor | None = None, coarser: Tensor | None = None) -> Tensor:
        """`[N, C, H, W]`, channels last for speed, in the layer's dtype.

        Args:
            x: the input.
            addend: of the output's shape, added before ReLU.
            coarser: of half the input's height and width, which the layer keeps; upsampled to the nearest and added.
        """
        return self.layers.convolve(self, x, addend, coarser)

    def without_bias(self, x: Tensor) -> Tensor:
        """The convolution alone."""
        return F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)


class PlainLayers:
    """By torch's ordinary operations: works everywhere and can be traced."""

    channel_multiple = 1

    def convolve(self, layer: FusedConv, x: Tensor, addend: Tensor | None, coarser: Tensor | None) -> Tensor:
        y = F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        if addend is not None:
            y += addend
        if coarser is not None:
            y += _upsampled(coarser, y)
        return y.relu_() if layer.relu else y

    def max_pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class MkldnnLayers(PlainLayers):
    """By mkldnn's convolutions on a CPU, which add and rectify while the result is in cache."""

    def convolve(self, layer: FusedConv, x: Tensor, addend: Tensor | None, coarser: Tensor | None) -> Tensor:
        if coarser is not None:
            upsampled = _upsampled(coarser, x)
            addend = upsampled if addend is None else addend + upsampled
        shape = (layer.padding, layer.stride, layer.dilation, layer.groups)
        after = "relu" if layer.relu else "none"
        pointwise = torch.ops.mkldnn._convolution_pointwise
        if addend is None:
            y: Tensor = pointwise.default(x, layer.weight, layer.bias, *shape, after, [], "")
        else:
            after_sum = after if layer.relu else None
            y = pointwise.binary(x, addend, layer.weight, layer.bias, *shape, "add", None, after_sum, [], None)
        return y


class CudnnLayers(PlainLayers):
    """By cuDNN's convolutions with bias, addition and ReLU, where this GPU has one for the layer."""

    def __init__(self) -> None:
        self._not_fused: set[FusedConv] = set()

    def convolve(self, layer: FusedConv, x: Tensor, addend: Tensor | None, coarser: Tensor | None) -> Tensor:
        if layer.relu and coarser is None and x.is_cuda and layer not in self._not_fused:
            try:
                return _by_cudnn(layer, x, addend)
            except RuntimeError as error:
                if is_out_of_memory(error) or torch.cuda.is_current_stream_capturing():
                    raise
                # Not every GPU has it for every layer. A graph is captured after the layer has run once.
                self._not_fused.add(layer)
                logger.warning("a convolution is not fused: %s", str(error).partition("\n")[0])
        return super().convolve(layer, x, addend, coarser)


def layers_for(device: torch.device, dtype: torch.dtype) -> Layers:
    """How a device computes layers without Triton."""
    if device.type == "cuda":
        return CudnnLayers()
    return MkldnnLayers() if device.type == "cpu" and _mkldnn_has(dtype) else PlainLayers()


def folded(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """The weight and bias, in float64, of one convolution that does what `conv` and then `norm` do."""
    weight = conv.weight.detach().double()
    bias = torch.zeros(conv.out_channels, dtype=torch.float64, device=weight.device)
    if conv.bias is not None:
        bias = conv.bias.detach().double()
    if norm is None:
        return weight, bias
    if not isinstance(norm, _Norm) or norm.running_mean is None or norm.running_var is None:
        raise TypeError(f"{type(norm).__name__} is not batch norm with constant statistics")
    scale = norm.weight.detach().double() * (norm.running_var.double() + norm.eps).rsqrt()
    shift = norm.bias.detach().double() - norm.running_mean.double() * scale
    return weight * scale[:, None, None, None], bias * scale + shift


def _by_cudnn(layer: FusedConv, x: Tensor, addend: Tensor | None) -> Tensor:
    shape = (layer.stride, layer.padding, layer.dilation, layer.groups)
    if addend is None:
        return torch.cudnn_convolution_relu(x, layer.weight, layer.bias, *shape)
    return torch.cudnn_convolution_add_relu(x, layer.weight, addend, 1.0, layer.bias, *shape)


def _upsampled(coarser: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(coarser, size=like.shape[-2:], mode="nearest")


@functools.cache
def _mkldnn_has(dtype: torch.dtype) -> bool:
    """Whether mkldnn convolves in this type on this processor. Where it does not, torch does, without fusing."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return cpu_has_bfloat16()
    return dtype == torch.float32
