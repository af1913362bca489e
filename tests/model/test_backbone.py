"""ResNet, pyramid and the choice of feature maps."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d as TheirFrozenBatchNorm2d

from model.backbone import BackboneWithFPN, IntermediateLayerGetter, resnet50_body, resnet_fpn
from model.fpn import FeaturePyramidNetwork, LastLevelMaxPool
from model.resnet import Bottleneck, FrozenBatchNorm2d
from tests.support.oracle import blobs


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


@pytest.mark.parametrize("returned", [(1, 2, 3, 4), (2, 4), (4,)])
def test_pyramid_equals_torchvisions(returned: tuple[int, ...]) -> None:
    theirs = _resnet_fpn_extractor(torchvision.models.resnet50(weights=None), 5, returned_layers=list(returned)).eval()
    ours = resnet_fpn(resnet50_body(frozen_norm=False), trainable_layers=5, returned_layers=returned).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    image = blobs(70, 100)[None]  # no multiple of 32, so the levels' sizes are not halves
    with torch.no_grad():
        expected, got = theirs(image), ours(image)
    assert list(got) == list(expected) == [str(level) for level in range(len(returned))] + ["pool"]
    for name, level in expected.items():
        torch.testing.assert_close(got[name], level, rtol=1e-5, atol=1e-5 * float(level.abs().max()))
    assert ours.out_channels == 256


def test_top_down_path_by_hand() -> None:
    fpn = FeaturePyramidNetwork([1, 1], 1, LastLevelMaxPool())
    for block in (*fpn.inner_blocks, *fpn.layer_blocks):
        nn.init.zeros_(block[0].weight)
        block[0].weight.data[0, 0, block[0].kernel_size[0] // 2, block[0].kernel_size[1] // 2] = 1.0  # identity
    fine, coarse = torch.zeros(1, 1, 3, 4), torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 2, 2)
    levels = fpn({"a": fine, "b": coarse})
    assert list(levels) == ["a", "b", "pool"]
    assert levels["a"].reshape(3, 4).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4]]  # nearest neighbour
    assert torch.equal(levels["b"], coarse)
    assert levels["pool"].flatten().tolist() == [1.0]  # every second pixel, not the largest of four


def test_layer_getter_drops_what_comes_after_the_last_wanted() -> None:
    body = nn.Sequential()
    for name, width in (("a", 2), ("b", 3), ("c", 4)):
        body.add_module(name, nn.Conv2d(width - 1, width, 1))
    getter = IntermediateLayerGetter(body, {"a": "first", "b": "second"})
    assert list(getter) == ["a", "b"]
    outputs = getter(torch.zeros(1, 1, 2, 2))
    assert {name: output.shape[1] for name, output in outputs.items()} == {"first": 2, "second": 3}


def test_extra_blocks_and_norm_in_the_pyramid() -> None:
    body = nn.Sequential()
    body.add_module("a", nn.Conv2d(1, 2, 1))
    backbone = BackboneWithFPN(body, {"a": "0"}, [2], 8, norm_layer=nn.BatchNorm2d)
    assert isinstance(backbone.fpn.extra_blocks, LastLevelMaxPool)
    convolution, norm = backbone.fpn.get_submodule("inner_blocks.0").children()
    assert convolution.bias is None
    assert isinstance(norm, nn.BatchNorm2d)
    assert {name: level.shape for name, level in backbone(torch.zeros(1, 1, 4, 4)).items()} == {
        "0": (1, 8, 4, 4),
        "pool": (1, 8, 2, 2),
    }


def test_errors() -> None:
    body = resnet50_body(frozen_norm=True)
    with pytest.raises(ValueError, match="trainable_layers must be 0 to 5, not 6"):
        resnet_fpn(body, trainable_layers=6)
    with pytest.raises(ValueError, match=r"stages 1 to 4, not \[0, 1\]"):
        resnet_fpn(body, trainable_layers=3, returned_layers=(0, 1))
    with pytest.raises(ValueError, match=r"no children named \['layer9'\]"):
        IntermediateLayerGetter(body, {"layer9": "0"})
    for channels in ([], [8, 0]):
        with pytest.raises(ValueError, match="positive channel counts"):
            FeaturePyramidNetwork(channels, 8)


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
