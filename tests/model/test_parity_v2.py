"""`fasterrcnn_resnet50_fpn_v2` against torchvision's, with the same weights."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torchvision.models.detection as oracle
from torchvision.ops.poolers import LevelMapper

from model import fasterrcnn_resnet50_fpn_v2
from model.inference.serving import ServingModel
from model.structures import SizeHW
from tests.support.oracle import STRIDES, Pair, StateDict, blobs, make_opinionated, pin_scales

# Four convolutions for each proposal are most of the work, so there are few.
FEW: dict[str, Any] = {"rpn_post_nms_top_n_test": 24, "rpn_post_nms_top_n_train": 24}
SMALL = FEW | {"min_size": 96, "max_size": 224}

# name: (sizes of the images in a batch, keywords)
CASES: dict[str, tuple[list[SizeHW], dict[str, Any]]] = {
    "landscape": ([(120, 180)], SMALL),
    "portrait": ([(180, 120)], SMALL),
    "square, enlarged": ([(60, 60)], SMALL | {"min_size": 128}),
    "reduced": ([(300, 400)], SMALL),
    "one pixel": ([(1, 1)], SMALL),
    "long 20:1": ([(20, 400)], SMALL),
    "mixed batch": ([(120, 180), (180, 120), (90, 90)], SMALL),
    "odd sizes": ([(101, 77)], SMALL | {"min_size": 101, "max_size": 151}),
    "91 classes": ([(120, 180)], SMALL | {"num_classes": 91}),
    "thresholds": ([(120, 180)], SMALL | {"box_score_thresh": 0.3, "box_nms_thresh": 0.2, "rpn_nms_thresh": 0.3}),
    "few detections": ([(120, 180)], SMALL | {"box_detections_per_img": 7}),
    "bbox_reg_weights": ([(120, 180)], SMALL | {"bbox_reg_weights": (5.0, 8.0, 2.5, 4.0)}),
    "mean and std": ([(120, 180)], SMALL | {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.25]}),
}


@functools.cache
def trained_like(num_classes: int) -> StateDict:
    """Make the state dict of a torchvision model that finds things."""
    torch.manual_seed(30_000 + num_classes)
    sizes = {"min_size": 128, "max_size": 224}
    model = oracle.fasterrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, num_classes=num_classes, **FEW, **sizes
    )
    make_opinionated(model)
    return dict(model.state_dict())


def pair(num_classes: int = 6, **kwargs: Any) -> Pair:
    """Make `(oracle, ours)` in eval mode."""
    theirs = oracle.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=num_classes, **kwargs)
    ours = fasterrcnn_resnet50_fpn_v2(num_classes=num_classes, **kwargs)
    for model in (theirs, ours):
        model.load_state_dict(trained_like(num_classes))
    return theirs.eval(), ours.eval()


def test_the_state_dict_is_torchvisions() -> None:
    theirs, ours = pair()
    shapes = [{key: tensor.shape for key, tensor in model.state_dict().items()} for model in (theirs, ours)]
    assert shapes[0] == shapes[1]
    trained = [[name for name, p in model.named_parameters() if p.requires_grad] for model in (theirs, ours)]
    assert trained[0] == trained[1]


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_detections_equal_torchvisions(case: str) -> None:
    sizes, settings = CASES[case]
    theirs, ours = (model.double() for model in pair(**settings))
    images = [blobs(*size, seed).double() for seed, size in enumerate(sizes)]

    for found, wanted in zip(ours(images), theirs(images), strict=True):
        assert len(wanted["labels"]) >= 3, "finding nothing proves nothing"
        assert torch.equal(found["labels"], wanted["labels"])
        torch.testing.assert_close(found["boxes"], wanted["boxes"], rtol=0, atol=1e-6)
        torch.testing.assert_close(found["scores"], wanted["scores"], rtol=0, atol=1e-8)


def test_losses_and_gradients_equal_torchvisions() -> None:
    """With live batch norm, as torchvision trains it, over the pictures and over the sampled proposals."""
    sizes = [(90, 130), (120, 100)]
    targets = [
        {
            "boxes": torch.tensor([[8.0, 10.0, 60.0, 70.0], [30.0, 20.0, 95.0, 85.0]], dtype=torch.float64),
            "labels": torch.tensor([1, 4]),
        }
        for _ in sizes
    ]
    images = [blobs(*size, seed).double() for seed, size in enumerate(sizes)]
    losses, gradients = [], []
    for model in pair(**SMALL, box_batch_size_per_image=16):
        model.double().train()
        torch.manual_seed(3)  # of the samplers
        losses.append(model(images, targets))
        sum(losses[-1].values()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})

    assert losses[0].keys() == losses[1].keys()
    for name, wanted in losses[0].items():
        torch.testing.assert_close(losses[1][name], wanted, rtol=1e-9, atol=1e-12)
    assert gradients[0].keys() == gradients[1].keys()
    for name, wanted in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], wanted, rtol=0, atol=1e-8 * float(wanted.abs().max()), msg=name)


@pytest.mark.parametrize("case", ["landscape", "mixed batch"])
@torch.inference_mode()
def test_the_serving_form_detects_what_torchvision_does(case: str) -> None:
    sizes, settings = CASES[case]
    theirs, ours = pair(**settings)
    pin_scales(ours)
    form = ServingModel(ours)
    images = [blobs(*size, seed) for seed, size in enumerate(sizes)]
    theirs.roi_heads.box_roi_pool.scales = [1 / stride for stride in STRIDES]
    theirs.roi_heads.box_roi_pool.map_levels = LevelMapper(2, 5)
    for found, wanted in zip(form.detect(images), theirs(images), strict=True):
        clear = wanted["scores"] > 0.05 + 2e-3
        near = (wanted["boxes"][clear][:, None] - found["boxes"]).abs().amax(-1) <= 0.05
        near &= (wanted["scores"][clear][:, None] - found["scores"]).abs() <= 5e-4
        assert (near & (wanted["labels"][clear][:, None] == found["labels"])).any(1).all()
        assert clear.sum() >= 3
