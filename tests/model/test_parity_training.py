"""The four losses and every gradient, against torchvision with the same weights and the same seed.

Training decides by comparison: which anchor overlaps a box enough, which of two proposals scores higher, whether an
activation is above zero. Where two values nearly tie, the rounding of float32 decides, and that differs between
processors. The models are therefore compared in float64, where nothing near a tie is left to rounding. In float32 both
are compared with the float64 result, and ours may be no further from it than torchvision's.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision.models.detection as oracle
from torch import Tensor, nn

from model import fasterrcnn_resnet50_fpn
from model.structures import Target
from tests.support.oracle import blobs, make_frozen_pair, make_pair

SMALL: dict[str, Any] = {
    "min_size": 96,
    "max_size": 192,
    "rpn_post_nms_top_n_train": 600,
    "box_batch_size_per_image": 200,
}
LOSSES = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}

# Boxes on pictures of 96 rows and 144 columns: (x1, y1, x2, y2, label).
NONE = ()
ONE = ((20, 30, 80, 90, 3),)
MANY = tuple((4 + 12 * i, 3 + 7 * i, 34 + 10 * i, 28 + 6 * i, 1 + i % 5) for i in range(10))
TINY = ((50, 50, 51.5, 51, 2), (100.25, 20.5, 100.5, 21, 1))
BORDER = ((0, 0, 40, 40, 1), (100, 60, 144, 96, 4), (0, 0, 144, 96, 5))

# name: (targets of the images in a batch, keywords)
TARGETS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "none": ([NONE], {}),
    "one": ([ONE], {}),
    "many": ([MANY], {}),
    "tiny": ([TINY], {}),
    "touching the border": ([BORDER], {}),
    "mixed batch": ([MANY, NONE, ONE + TINY], {}),
    "drawn min_size": ([ONE, BORDER], {"min_size": (80, 96, 112, 128)}),
    "own thresholds": (
        [MANY, BORDER],
        {
            "rpn_fg_iou_thresh": 0.5,
            "rpn_bg_iou_thresh": 0.2,
            "rpn_batch_size_per_image": 64,
            "rpn_positive_fraction": 0.25,
            "box_fg_iou_thresh": 0.6,
            "box_bg_iou_thresh": 0.3,
            "box_batch_size_per_image": 100,
            "box_positive_fraction": 0.5,
            "bbox_reg_weights": (4.0, 5.0, 2.0, 3.0),
            "rpn_pre_nms_top_n_train": 300,
            "rpn_post_nms_top_n_train": 200,
        },
    ),
    "size left alone": ([ONE, MANY], {"_skip_resize": True}),
}


def targets_of(boxes_of_images: Any, dtype: torch.dtype = torch.float64) -> list[Target]:
    tables = [torch.tensor(rows, dtype=dtype).reshape(-1, 5) for rows in boxes_of_images]
    return [{"boxes": table[:, :4].clone(), "labels": table[:, 4].to(torch.int64)} for table in tables]


def losses_and_gradients(
    model: nn.Module, images: list[Tensor], targets: list[Target], seed: int = 5
) -> tuple[dict[str, Tensor], dict[str, Tensor | None], Tensor]:
    model.train()
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    losses = model(images, targets)
    sum(losses.values()).backward()
    state_of_the_dice = torch.get_rng_state()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: loss.detach().double() for name, loss in losses.items()}, gradients, state_of_the_dice


def assert_equal_training(theirs: nn.Module, ours: nn.Module, images: list[Tensor], targets: list[Target]) -> None:
    """Compare in float64; `targets` are float64."""
    images = [image.double() for image in images]
    expected, expected_gradients, expected_dice = losses_and_gradients(theirs.double(), images, targets)
    got, gradients, dice = losses_and_gradients(ours.double(), images, targets)

    assert got.keys() == expected.keys() == LOSSES
    for name, loss in expected.items():
        torch.testing.assert_close(got[name], loss, rtol=1e-9, atol=1e-12, msg=f"{name}: {{}}".format)
    assert torch.equal(dice, expected_dice)  # so the next step draws the same too

    assert gradients.keys() == expected_gradients.keys()
    moved = 0
    for name, gradient in expected_gradients.items():
        ours_of_it = gradients[name]
        if gradient is None or ours_of_it is None:
            assert gradient is ours_of_it is None, name
            continue
        difference = (ours_of_it - gradient).norm()
        assert difference <= 1e-9 * gradient.norm(), f"{name}: {difference:.3g} of {gradient.norm():.3g}"
        moved += bool(gradient.norm() > 0)
    assert moved > 20, "almost nothing has a gradient, so the test proves nothing"


@pytest.mark.parametrize("case", TARGETS)
def test_losses_and_gradients_equal_torchvisions_with_frozen_norm(case: str) -> None:
    boxes, settings = TARGETS[case]
    theirs, ours = make_frozen_pair(**SMALL | settings)
    targets = targets_of(boxes)
    copies = copy.deepcopy(targets)
    assert_equal_training(theirs, ours, [blobs(96, 144, seed) for seed in range(len(boxes))], targets)
    for target, before in zip(targets, copies, strict=True):
        assert torch.equal(target["boxes"], before["boxes"])
        assert torch.equal(target["labels"], before["labels"])


@pytest.mark.parametrize("case", ["one", "mixed batch"])
def test_losses_and_gradients_equal_torchvisions_with_live_norm(case: str) -> None:
    boxes, settings = TARGETS[case]
    theirs, ours = make_pair(**SMALL | settings)
    images = [blobs(96, 144, seed) for seed in range(len(boxes))]
    assert_equal_training(theirs, ours, images, targets_of(boxes))
    expected, got = dict(theirs.named_buffers()), dict(ours.named_buffers())
    assert got.keys() == expected.keys()
    assert any("running_mean" in name for name in got)
    for name, buffer in expected.items():  # the running statistics moved alike
        torch.testing.assert_close(got[name], buffer, rtol=1e-9, atol=1e-12)


def as_vectors(model: nn.Module, images: list[Tensor], targets: list[Target]) -> tuple[Tensor, Tensor]:
    """The losses `[4]` and the gradients of all parameters, one after the other, both in float64."""
    losses, gradients, _ = losses_and_gradients(model, images, targets)
    present = [gradient for gradient in gradients.values() if gradient is not None]
    assert {gradient.dtype for gradient in present} == {images[0].dtype}
    in_one = torch.cat([gradient.double().flatten() for gradient in present])
    return torch.stack([losses[name] for name in sorted(LOSSES)]), in_one


@pytest.mark.slow
def test_float32_trains_as_near_to_float64_as_torchvisions() -> None:
    """By the median over several cases: one that rounding flips in one of the two models decides nothing."""
    # Relative ones, of the losses and of the gradients, for each case.
    distances: dict[str, list[Tensor]] = {"theirs": [], "ours": []}
    for case in ("one", "many", "tiny", "touching the border", "drawn min_size", "own thresholds", "size left alone"):
        boxes, settings = TARGETS[case]
        theirs, ours = make_frozen_pair(**SMALL | settings)
        images = [blobs(96, 144, seed) for seed in range(len(boxes))]
        narrow = targets_of(boxes, torch.float32)
        results = {"theirs": as_vectors(theirs, images, narrow), "ours": as_vectors(ours, images, narrow)}
        exact = as_vectors(theirs.double(), [image.double() for image in images], targets_of(boxes))
        for name, result in results.items():
            pairs = zip(result, exact, strict=True)
            distances[name].append(torch.stack([(got - right).norm() / right.norm() for got, right in pairs]))
    of_theirs, of_ours = torch.stack(distances["theirs"]), torch.stack(distances["ours"])
    ratios = (of_ours - 1e-5).clamp(min=0) / of_theirs
    assert (ratios.median(dim=0).values <= 1.5).all(), (of_ours, of_theirs)
    assert of_ours.median(dim=0).values.max() < 0.5, "so far from float64 that the comparison proves nothing"


def test_all_parameters_train_alike_with_every_layer_thawed() -> None:
    theirs, ours = make_frozen_pair(trainable_layers=5, **SMALL)
    assert_equal_training(theirs, ours, [blobs(144, 96), blobs(96, 144)], targets_of([ONE, MANY]))
    gradient = ours.get_parameter("backbone.body.conv1.weight").grad
    assert gradient is not None
    assert gradient.norm() > 0


def test_pictures_of_mixed_sizes_train_alike() -> None:
    theirs, ours = make_frozen_pair(**SMALL)
    images = [blobs(96, 144), blobs(200, 150), blobs(96, 300)]
    assert_equal_training(theirs, ours, images, targets_of([ONE, BORDER, TINY]))


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("layers", range(6))
def test_trainable_backbone_layers_thaw_the_same_parameters(layers: int) -> None:
    theirs, ours = make_frozen_pair(trainable_layers=layers)
    assert trained(ours) == trained(theirs)
    thawed = {name.split(".")[2] for name in trained(ours) if name.startswith("backbone.body")}
    assert thawed == set(("layer4", "layer3", "layer2", "layer1", "conv1")[:layers])


def test_without_weights_everything_trains_as_in_torchvision() -> None:
    theirs = oracle.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    ours = fasterrcnn_resnet50_fpn()
    assert trained(ours) == trained(theirs) == {name for name, _ in ours.named_parameters()}
    assert ours.training
