"""Convolution, constant batch norm, addition and ReLU as one operation.

Batch norm with constant statistics is a scale and a shift per channel, which the convolution before it can do: the
scale goes into its weights, the shift becomes its bias. What follows (the shortcut's addition, the ReLU) is handed to
the backend's convolution, which does it while the result is still in cache.
"""

from __future__ import annotations

import functools
import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]

from model.inference.memory import is_out_of_memory
from model.resnet import FrozenBatchNorm2d

logger = logging.getLogger(__name__)

_Norm = FrozenBatchNorm2d | nn.BatchNorm2d


class FusedConv(nn.Module):
    """y = relu(conv(x) + bias + addend), each part as it is there.

    Args:
        conv: its weights are copied.
        norm: batch norm in eval mode that follows it; folded in.
        relu: whether ReLU follows.
        dtype: of the weights and the arithmetic; folding is done in float64 before.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, norm: nn.Module | None = None, *, relu: bool, dtype: torch.dtype) -> None:
        super().__init__()
        weight, bias = folded(conv, norm)
        self.relu = relu
        self._cudnn_fuses = True
        if isinstance(conv.padding, str):
            raise ValueError(f"padding {conv.padding!r} is not in pixels")  # noqa: TRY004 - its value is at fault
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.register_buffer("weight", weight.to(dtype).contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias.to(dtype))

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """`[N, C, H, W]`, channels last for speed, in the layer's dtype.

        Args:
            x: the input.
            addend: of the output's shape, added before ReLU.
        """
        if _can_fuse(x):
            return self._fused(x, addend)
        if self.relu and x.is_cuda and self._cudnn_fuses:
            try:
                return self._fused_on_gpu(x, addend)
            except RuntimeError as error:
                if is_out_of_memory(error) or torch.cuda.is_current_stream_capturing():
                    raise
                # Not every GPU has it for every layer. A graph is captured after the layer has run once.
                self._cudnn_fuses = False
                logger.warning("a convolution is not fused: %s", str(error).partition("\n")[0])
        return self._plain(x, addend)

    def _plain(self, x: Tensor, addend: Tensor | None) -> Tensor:
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if addend is not None:
            y += addend
        return y.relu_() if self.relu else y

    def _fused(self, x: Tensor, addend: Tensor | None) -> Tensor:
        shape = (self.padding, self.stride, self.dilation, self.groups)
        after = "relu" if self.relu else "none"
        pointwise = torch.ops.mkldnn._convolution_pointwise
        if addend is None:
            y: Tensor = pointwise.default(x, self.weight, self.bias, *shape, after, [], "")
        else:
            y = pointwise.binary(
                x, addend, self.weight, self.bias, *shape, "add", None, after if self.relu else None, [], None
            )
        return y

    def _fused_on_gpu(self, x: Tensor, addend: Tensor | None) -> Tensor:
        shape = (self.stride, self.padding, self.dilation, self.groups)
        if addend is None:
            return torch.cudnn_convolution_relu(x, self.weight, self.bias, *shape)
        return torch.cudnn_convolution_add_relu(x, self.weight, addend, 1.0, self.bias, *shape)


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


def _can_fuse(x: Tensor) -> bool:
    return x.device.type == "cpu" and _mkldnn_has(x.dtype) and not is_tracing()


@functools.cache
def _mkldnn_has(dtype: torch.dtype) -> bool:
    """Whether mkldnn convolves in this type on this processor. Where it does not, torch does, without fusing."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
