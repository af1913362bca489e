from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from model.data.synthetic import SyntheticData
from model.training.batches import batches
from model.training.norm import measure_norm
from tests.support.tiny_run import tiny_detector, tiny_settings

SIZE_HW = (96, 128)


@pytest.mark.parametrize("size", [2, 4])
def test_each_layer_gets_the_statistics_of_what_reaches_it(size: int) -> None:
    settings = tiny_settings(1, live_norm=True)
    model = tiny_detector(settings).eval()
    data = SyntheticData("train", count=10, size_hw=SIZE_HW)
    measure_norm(model, data, images=2 * size - 1, batch_size=size, seed=3)
    order = itertools.islice(batches([SIZE_HW] * 10, size, 3), 2)  # rounded up to whole batches
    layers: list[Any] = [model.transform([data[i][0].float() / 255 for i in batch]).tensors for batch in order]
    backbone: Any = model.backbone
    for convolution, norm, _ in backbone.blocks:
        outputs = [F.conv2d(x, convolution.weight, stride=2, padding=1) for x in layers]
        means, variances = [x.mean((0, 2, 3)) for x in outputs], [x.var((0, 2, 3)) for x in outputs]
        torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0), rtol=1e-4, atol=1e-5)
        layers = [F.batch_norm(x, None, None, norm.weight, norm.bias, training=True).relu() for x in outputs]
    assert not model.backbone.training


def test_frozen_norm_is_left_as_it_is() -> None:
    model = tiny_detector(tiny_settings(1)).eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    measure_norm(model, SyntheticData("train", count=3, size_hw=SIZE_HW), images=3, batch_size=1, seed=0)
    assert all(tensor.equal(before[key]) for key, tensor in model.state_dict().items())
