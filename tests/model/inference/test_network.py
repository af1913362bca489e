from __future__ import annotations

from typing import Any

import torch

from model.inference.network import TorchNetwork
from tests.support.oracle import make_pair

SMALL: dict[str, Any] = {"min_size": 128, "max_size": 320, "rpn_post_nms_top_n_test": 300}


@torch.no_grad()
def test_the_network_gives_what_backbone_and_head_give() -> None:
    _, model = make_pair(**SMALL)
    images = torch.randn(2, 3, 96, 160)
    features = model.backbone(images)
    logits, deltas = model.rpn.head(list(features.values()))
    network = TorchNetwork(model)
    output = network(images)
    assert len(output.levels) == 4
    assert len(output.predictions) == 5
    for got, wanted in zip(output.levels, list(features.values()), strict=False):
        torch.testing.assert_close(got, wanted.permute(0, 2, 3, 1), rtol=0, atol=1e-4 * float(wanted.abs().max()))
    for got, logit, delta in zip(output.predictions, logits, deltas, strict=True):
        wanted = torch.cat((logit, delta), dim=1).permute(0, 2, 3, 1)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-3 * float(wanted.abs().max()))
