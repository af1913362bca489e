from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from model.inference.box_head import FoldedBoxHead
from model.inference.fused_conv import PlainLayers
from model.inference.network import UnsupportedModelError
from model.roi_heads import FastRCNNConvFCHead, TwoMLPHead

HW = (7, 5)


def heads() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    with_norm = FastRCNNConvFCHead((4, *HW), (6, 8), [12, 16], nn.BatchNorm2d)
    for module in with_norm.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5)
    return {
        "two linear layers": TwoMLPHead(4 * 35, 16),
        "convolutions": FastRCNNConvFCHead((4, *HW), (6,), [16]),
        "convolutions with norm": with_norm,
    }


def pooled(rois: int) -> Tensor:
    return torch.randn(rois, 4, *HW, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rois", [0, 1, 5])
@pytest.mark.parametrize("name", list(heads()))
@torch.no_grad()
def test_it_computes_what_the_head_does_from_channels_last(name: str, rois: int) -> None:
    head = heads()[name].double().eval()
    folded = FoldedBoxHead(head, HW, dtype=torch.float64, layers=PlainLayers())
    x = pooled(rois)
    found = folded(x.flatten(2).transpose(1, 2))
    assert found.shape == (rois, 16)
    torch.testing.assert_close(found, head(x))


def test_another_head_has_no_serving_form() -> None:
    with pytest.raises(UnsupportedModelError, match="Sequential has no serving form"):
        FoldedBoxHead(nn.Sequential(nn.Flatten()), HW, dtype=torch.float32, layers=PlainLayers())
