from __future__ import annotations

import torch
from torch import nn

from model.fpn import FeaturePyramidNetwork, LastLevelMaxPool


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
