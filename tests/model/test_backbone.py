"""ResNet, pyramid and the choice of feature maps."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor

from model.backbone import BackboneWithFPN, IntermediateLayerGetter, resnet50_body, resnet_fpn
from model.fpn import FeaturePyramidNetwork, LastLevelMaxPool
from tests.support.oracle import blobs


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
