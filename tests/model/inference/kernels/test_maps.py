"""Bias, upsampled level and max-pool by the kernels against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.inference.fused_conv import FusedConv, PlainLayers
from model.inference.kernels.maps import KernelLayers, add_to_maps_, max_pool

ROUNDING = {
    torch.float32: 1e-6,
    torch.float16: 2**-11,
    torch.bfloat16: 2**-7,
}  # relative; the interpreter cuts bf16 off


def maps_of(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    maps = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return maps.contiguous(memory_format=torch.channels_last)


def upsampled(maps: Tensor) -> Tensor:
    return maps.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_coarser", [False, True])
def test_adds_with_one_rounding(dtype: torch.dtype, with_bias: bool, with_coarser: bool, device: torch.device) -> None:
    maps = maps_of(2, 5, 4, 6, dtype=dtype)
    bias = torch.linspace(-1, 1, 5).to(dtype) if with_bias else None
    coarser = maps_of(2, 5, 2, 3, seed=2, dtype=dtype) if with_coarser else None
    wanted = maps.double()
    wanted += 0 if bias is None else bias.double()[:, None, None]
    wanted += 0 if coarser is None else upsampled(coarser.double())
    maps = maps.to(device)
    got = add_to_maps_(maps, *(None if given is None else given.to(device) for given in (bias, coarser)))
    assert got is maps  # in place
    torch.testing.assert_close(got.double().cpu(), wanted, rtol=ROUNDING[dtype], atol=1e-6)


@pytest.mark.parametrize(("channels", "width"), [(16, 130), (64, 66), (256, 18), (300, 2)])
def test_adds_to_every_column_and_channel(channels: int, width: int, device: torch.device) -> None:
    """Widths of a tile, a part of one, and more."""
    maps, bias = maps_of(1, channels, 2, width).to(device), torch.arange(float(channels), device=device)
    coarser = maps_of(1, channels, 1, width // 2, seed=1).to(device)
    wanted = maps + bias[:, None, None] + upsampled(coarser)
    assert torch.equal(add_to_maps_(maps, bias, coarser), wanted)


def test_no_number_stays_no_number(device: torch.device) -> None:
    maps = torch.full((1, 2, 2, 2), torch.nan, device=device).contiguous(memory_format=torch.channels_last)
    assert max_pool(maps).isnan().all()


def test_wrong_shapes_and_orders_are_rejected(device: torch.device) -> None:
    maps = maps_of(1, 4, 4, 6).to(device)
    with pytest.raises(ValueError, match="not half of"):
        add_to_maps_(maps, None, maps_of(1, 4, 2, 2).to(device))
    with pytest.raises(ValueError, match="channels last"):
        add_to_maps_(maps.contiguous(), None)
    with pytest.raises(ValueError, match="channels last"):
        max_pool(maps.contiguous())


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", [(2, 5, 4, 6), (1, 64, 3, 140), (1, 3, 1, 1), (2, 8, 5, 7), (0, 8, 4, 4)])
def test_max_pool_is_torchs(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
    maps = maps_of(*shape, dtype=dtype) - 2  # most are negative: a border of zeros would win
    wanted = F.max_pool2d(maps.float(), 3, 2, 1).to(dtype) if maps.numel() else maps[:, :, :2, :2]
    assert torch.equal(max_pool(maps.to(device)).cpu(), wanted)


@pytest.mark.parametrize("case", ["bias", "relu", "addend", "coarser", "no bias"])
@torch.no_grad()
def test_layers_are_those_of_plain_torch(case: str, device: torch.device) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, padding=1).to(device)
    x, addend = maps_of(2, 6, 4, 6).to(device), maps_of(2, 8, 4, 6, seed=1).to(device)
    coarser = maps_of(2, 8, 2, 3, seed=2).to(device)
    given = {"addend": (addend, None), "coarser": (None, coarser)}.get(case, (None, None))
    got, wanted = (
        FusedConv(
            conv, relu=case in {"relu", "addend"}, dtype=torch.float32, layers=layers, has_bias=case != "no bias"
        )(x, *given)
        for layers in (KernelLayers(), PlainLayers())
    )
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
