from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign as TheirRoIAlign

from model.roi_align import multi_scale_roi_align
from model.roi_pool import MultiScaleRoIAlign

SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
both_modes = pytest.mark.parametrize("training", [True, False])


def square(side: float) -> Tensor:
    return torch.tensor([[0.0, 0.0, side, side]])


@pytest.mark.parametrize(
    ("side", "level"),
    [
        (1, 0),
        (111.9, 0),
        (112, 1),  # k0 = 4 belongs to 224 px; level 0 is k = 2, and holds all that is smaller
        (223.9, 1),
        (224, 2),
        (447.9, 2),
        (448, 3),
        (2000, 3),
    ],
)
def test_level_by_equation_1(side: float, level: int) -> None:
    pool = MultiScaleRoIAlign(("0", "1", "2", "3"), 7, 2)
    assert pool.levels_of(square(side), SCALES).tolist() == [level]


def test_level_goes_by_the_area_whatever_the_shape() -> None:
    long = torch.tensor([[0.0, 0.0, 896.0, 56.0]])  # as large as 224 x 224
    assert MultiScaleRoIAlign(("0", "1", "2", "3"), 7, 2).levels_of(long, SCALES).tolist() == [2]


def test_canonical_scale_and_level_move_the_bounds() -> None:
    pool = MultiScaleRoIAlign(("0", "1"), 7, 2, canonical_scale=100, canonical_level=3)
    sides = torch.cat([square(99.0), square(100.0)])
    assert pool.levels_of(sides, (1 / 4, 1 / 8)).tolist() == [0, 1]


def pyramid(height: int = 256, width: int = 320, levels: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        str(k): torch.randn(2, 3, height // 2 ** (k + 2), width // 2 ** (k + 2), generator=generator)
        for k in range(levels)
    }


def gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def boxes_of_all_sizes() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(40, 2, generator=generator) * 100
    return torch.cat((corners, corners + torch.logspace(0, 2.3, 40)[:, None]), dim=1)


@both_modes
@pytest.mark.parametrize(
    ("names", "size", "ratio"), [(["0", "1", "2", "3"], 7, 2), (["1", "2"], (3, 5), 1), (["2"], 4, 0)]
)
def test_pooled_features_and_gradients_equal_torchvisions(
    names: list[str], size: int | tuple[int, int], ratio: int, training: bool
) -> None:
    boxes = [boxes_of_all_sizes(), boxes_of_all_sizes()[:5]]
    shapes = [(250, 320), (256, 300)]
    ours, theirs = MultiScaleRoIAlign(names, size, ratio).train(training), TheirRoIAlign(names, size, ratio)
    maps, their_maps = ({name: level.requires_grad_() for name, level in pyramid().items()} for _ in range(2))
    pooled, wanted = ours(maps, boxes, shapes), theirs(their_maps, boxes, shapes)
    assert pooled.shape == (45, 3, *ours.output_size)
    torch.testing.assert_close(pooled, wanted, rtol=0, atol=1e-6)
    assert list(ours.scales or ()) == theirs.scales
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2))
    pooled.backward(upstream)
    wanted.backward(upstream)
    for name in names:
        torch.testing.assert_close(maps[name].grad, their_maps[name].grad, rtol=1e-5, atol=1e-5)


def test_half_precision_features_with_float32_boxes() -> None:
    """What autocast gives."""
    boxes = [boxes_of_all_sizes(), boxes_of_all_sizes()[:5]]
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    maps = {name: level.bfloat16().requires_grad_() for name, level in pyramid().items()}
    pooled = pool(maps, boxes, [(256, 320)] * 2)
    assert pooled.dtype == torch.bfloat16
    wanted = TheirRoIAlign(["0", "1", "2", "3"], 7, 2)(pyramid(), boxes, [(256, 320)] * 2)
    torch.testing.assert_close(pooled.float(), wanted, rtol=0.01, atol=0.01)
    pooled.sum().backward()
    assert all(gradient(level).dtype == torch.bfloat16 for level in maps.values())
    assert gradient(maps["0"]).any()


def test_training_on_a_cpu_is_by_the_weighted_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(args)
        return multi_scale_roi_align(*args, **kwargs)

    monkeypatch.setattr("model.roi_pool.multi_scale_roi_align", spy)
    pool = MultiScaleRoIAlign(["0"], 7, 2)
    for training, count in ((False, 0), (True, 1)):
        pool.train(training)(pyramid(), [boxes_of_all_sizes()] * 2, [(256, 320)] * 2)
        assert len(calls) == count


@both_modes
def test_no_gradient_flows_to_the_boxes(training: bool) -> None:
    boxes, level = boxes_of_all_sizes().requires_grad_(), pyramid()["0"].requires_grad_()
    pooled = MultiScaleRoIAlign(["0"], 7, 2).train(training)({"0": level}, [boxes, boxes], [(256, 320)] * 2)
    pooled.sum().backward()
    assert boxes.grad is None
    assert gradient(level).any()


@both_modes
def test_samples_are_averaged_and_not_maximised(training: bool) -> None:
    # A map that grows by 1 per column: an average over a bin is the value at its middle, a maximum is not.
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    pool = MultiScaleRoIAlign(["0"], 1, 2).train(training)
    pool.pin_scales((4,))
    # Columns 2 to 6 of the map; pixel centres are not shifted by half, as in torchvision.
    assert pool({"0": ramp}, [torch.tensor([[8.0, 8.0, 24.0, 24.0]])], [(32, 32)]).item() == pytest.approx(4.0)


@both_modes
def test_no_boxes_pool_to_nothing(training: bool) -> None:
    maps = {name: level.requires_grad_() for name, level in pyramid().items()}
    pool = MultiScaleRoIAlign(["0", "1"], 7, 2).train(training)
    pooled = pool(maps, [torch.zeros(0, 4), torch.zeros(0, 4)], [(256, 320)] * 2)
    assert pooled.shape == (0, 3, 7, 7)
    (pooled.sum() + maps["0"].sum()).backward()
    assert (gradient(maps["0"]) == 1).all()


@both_modes
def test_pinned_scales_stay(training: bool) -> None:
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2).train(training)
    pool.pin_scales((4, 8, 16, 32))
    pool(pyramid(), [boxes_of_all_sizes(), boxes_of_all_sizes()], [(120, 160)] * 2)  # would suggest 1/2, 1/4, ...
    assert pool.scales == SCALES
    assert [-math.log2(scale) for scale in pool.scales] == [2, 3, 4, 5]


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"levels \['0', '1', '2', '3'\], none of \['x'\]"):
        MultiScaleRoIAlign(["x"], 7, 2)(pyramid(), [torch.zeros(0, 4)] * 2, [(256, 320)] * 2)
    pool = MultiScaleRoIAlign(["0", "1"], 7, 2)
    pool.pin_scales((4, 8, 16))
    with pytest.raises(ValueError, match="3 scales are set for 2 levels"):
        pool(pyramid(), [torch.zeros(0, 4)] * 2, [(256, 320)] * 2)
