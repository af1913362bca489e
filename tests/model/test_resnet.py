from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d as TheirFrozenBatchNorm2d

from model.resnet import Bottleneck, FrozenBatchNorm2d


def test_frozen_norm_by_hand() -> None:
    norm = FrozenBatchNorm2d(1, eps=1.0)
    for name, value in {"weight": 2.0, "bias": 5.0, "running_mean": 3.0, "running_var": 15.0}.items():
        getattr(norm, name).fill_(value)
    x = torch.tensor([3.0, 7.0]).reshape(1, 1, 1, 2)
    assert norm(x).flatten().tolist() == [5.0, 7.0]  # (x - 3) / 4 * 2 + 5
    assert list(norm.parameters()) == []
    assert norm.train()(x).flatten().tolist() == [5.0, 7.0]


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_frozen_norm_equals_torchvisions(eps: float) -> None:
    torch.manual_seed(0)
    ours, theirs = FrozenBatchNorm2d(6, eps), TheirFrozenBatchNorm2d(6, eps)
    state = {key: torch.rand(6) + 0.1 for key in theirs.state_dict()}
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    x = torch.randn(2, 6, 5, 4)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)


def test_the_stride_sits_in_the_3x3() -> None:
    block = Bottleneck(8, 4, stride=2, project=True, norm_layer=nn.BatchNorm2d)
    assert [block.conv1.stride, block.conv2.stride, block.conv3.stride] == [(1, 1), (2, 2), (1, 1)]
    assert block.downsample is not None
    assert block.downsample[0].stride == (2, 2)


def test_frozen_norm_keeps_the_kind_of_its_input_under_autocast() -> None:
    x = torch.rand(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = nn.Conv2d(3, 6, 3)(x)
        assert FrozenBatchNorm2d(6)(y).dtype == nn.BatchNorm2d(6)(y).dtype == torch.bfloat16
    assert FrozenBatchNorm2d(3)(x).dtype == torch.float32


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frozen_norm_of_narrow_pixels_rounds_once_there_and_back(dtype: torch.dtype, eps: float) -> None:
    torch.manual_seed(0)
    norm = FrozenBatchNorm2d(6, eps)
    norm.load_state_dict({key: torch.rand(6) + 0.5 for key in norm.state_dict()})
    x = torch.randn(2, 6, 5, 4).to(dtype, memory_format=torch.channels_last).requires_grad_()
    y = norm(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    assert x.grad is not None
    assert y.dtype == x.grad.dtype == dtype
    exact = x.detach().double().requires_grad_()
    expected = norm.double()(exact)
    expected.backward(gradient.double())
    half_a_place = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(y.double(), expected, rtol=1.01 * half_a_place, atol=1e-6)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1.01 * half_a_place, atol=1e-6)


def test_frozen_norm_takes_wider_pixels_than_its_own() -> None:
    assert FrozenBatchNorm2d(3)(torch.rand(1, 3, 2, 2, dtype=torch.float64)).dtype == torch.float64
    assert FrozenBatchNorm2d(3).bfloat16()(torch.rand(1, 3, 2, 2)).dtype == torch.float32
