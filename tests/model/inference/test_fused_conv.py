from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from model.inference.fused_conv import CudnnLayers, FusedConv, Layers, PlainLayers, folded, layers_for
from model.resnet import FrozenBatchNorm2d


def filled(norm: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, name).data.uniform_(0.5, 1.5, generator=generator)
    return norm.eval()


def conv_and_norm(frozen: bool, **kwargs: Any) -> tuple[nn.Conv2d, nn.Module]:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, padding=1, bias=False, **kwargs)
    return conv, filled(FrozenBatchNorm2d(8, eps=0.1) if frozen else nn.BatchNorm2d(8, eps=0.1))


def test_folding_by_hand() -> None:
    conv, norm = nn.Conv2d(1, 1, 1), FrozenBatchNorm2d(1, eps=1.0)
    conv.weight.data.fill_(2.0)
    conv.get_parameter("bias").data.fill_(5.0)
    norm.weight.fill_(6.0)
    norm.bias.fill_(0.5)
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(3.0)
    # ((2 x + 5) - 1) * 6 / sqrt(3 + 1) + 0.5 = 6 x + 12.5
    weight, bias = folded(conv, norm)
    assert (weight.item(), bias.item()) == (6.0, 12.5)


LAYERS = [
    pytest.param(PlainLayers(), id="plain"),
    pytest.param(layers_for(torch.device("cpu"), torch.float32), id="cpu"),
    pytest.param(CudnnLayers(), id="cudnn falls back"),
]


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("frozen", [True, False])
@torch.no_grad()
def test_one_operation_does_what_the_parts_do(frozen: bool, stride: int, relu: bool, layers: Layers) -> None:
    conv, norm = conv_and_norm(frozen, stride=stride)
    fused = FusedConv(conv, norm, relu=relu, dtype=torch.float32, layers=layers)
    x = torch.randn(2, 6, 9, 7)
    wanted = norm(conv(x))
    addend = torch.randn_like(wanted)

    after = torch.relu if relu else nn.Identity()
    last = x.contiguous(memory_format=torch.channels_last)
    kept = addend.contiguous(memory_format=torch.channels_last)
    for given, added in ((x, addend), (last, kept)):
        before = added.clone()
        torch.testing.assert_close(fused(given), after(wanted), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(fused(given, added), after(wanted + addend), rtol=1e-5, atol=1e-5)
        assert torch.equal(added, before)  # a shortcut is used again


@pytest.mark.parametrize("layers", LAYERS)
@torch.no_grad()
def test_a_coarser_map_is_upsampled_and_added(layers: Layers) -> None:
    conv = nn.Conv2d(6, 8, 1)
    fused = FusedConv(conv, relu=False, dtype=torch.float32, layers=layers)
    x, coarser = torch.randn(2, 6, 4, 6), torch.randn(2, 8, 2, 3)
    wanted = conv(x) + coarser.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(fused(x, coarser=coarser), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", LAYERS)
@torch.no_grad()
def test_a_bias_may_be_added_by_another_layer(layers: Layers) -> None:
    conv, x, addend = nn.Conv2d(6, 8, 1), torch.randn(2, 6, 4, 6), torch.randn(2, 8, 4, 6)
    bare = FusedConv(conv, relu=False, dtype=torch.float32, layers=layers, has_bias=False)
    assert bare.bias is None
    bias = conv.get_parameter("bias").detach()
    torch.testing.assert_close(bare(x) + bias[:, None, None], conv(x), rtol=1e-5, atol=1e-5)
    more = FusedConv(conv, relu=True, dtype=torch.float32, layers=layers, more_bias=bias.double())
    wanted = torch.relu(conv(x) + bias[:, None, None] + addend)
    torch.testing.assert_close(more(x, addend), wanted, rtol=1e-5, atol=1e-5)


def test_layers_of_a_cpu_without_native_bf16_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.inference.fused_conv._mkldnn_has", lambda dtype: dtype == torch.float32)
    assert type(layers_for(torch.device("cpu"), torch.float32)) is not PlainLayers
    assert type(layers_for(torch.device("cpu"), torch.bfloat16)) is PlainLayers


def test_what_cannot_be_folded_is_told() -> None:
    conv = nn.Conv2d(3, 8, 1)
    with pytest.raises(TypeError, match="GroupNorm"):
        FusedConv(conv, nn.GroupNorm(2, 8), relu=False, dtype=torch.float32, layers=PlainLayers())
    with pytest.raises(TypeError, match="constant"):
        FusedConv(
            conv, nn.BatchNorm2d(8, track_running_stats=False), relu=False, dtype=torch.float32, layers=PlainLayers()
        )
    with pytest.raises(ValueError, match="padding"):
        FusedConv(nn.Conv2d(3, 8, 3, padding="same"), relu=False, dtype=torch.float32, layers=PlainLayers())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("channels", "kernel", "stride"), [(3, 7, 2), (64, 1, 1), (64, 3, 1), (64, 3, 2), (256, 1, 2)])
def test_cudnn_fuses_what_the_plain_form_does(dtype: torch.dtype, channels: int, kernel: int, stride: int) -> None:
    torch.backends.cudnn.allow_tf32 = False
    conv = nn.Conv2d(channels, 64, kernel, stride, kernel // 2).cuda()
    layers = CudnnLayers()
    fused = FusedConv(conv, relu=True, dtype=dtype, layers=layers)
    x = torch.randn(2, channels, 40, 56, device="cuda", dtype=dtype).contiguous(memory_format=torch.channels_last)
    plain = PlainLayers().convolve(fused, x, None, None)
    for addend in (None, torch.randn_like(plain)):
        wanted = PlainLayers().convolve(fused, x, addend, None)
        poison = torch.full_like(wanted, torch.nan)
        del poison  # its memory becomes the output's
        tolerance = 1e-4 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(fused(x, addend), wanted, rtol=tolerance, atol=tolerance)
    assert not layers._not_fused
