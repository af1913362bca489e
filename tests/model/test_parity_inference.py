"""Detection, stage by stage, against torchvision with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision.models.detection as oracle
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator as TheirAnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor as TheirPredictor
from torchvision.models.detection.faster_rcnn import TwoMLPHead as TheirBoxHead
from torchvision.models.detection.rpn import RPNHead as TheirRPNHead
from torchvision.ops import MultiScaleRoIAlign as TheirRoIAlign

from model import fasterrcnn_resnet50_fpn
from model.anchors import AnchorGenerator
from model.faster_rcnn import FasterRCNN
from model.roi_heads import FastRCNNPredictor, TwoMLPHead
from model.roi_pool import MultiScaleRoIAlign
from model.rpn import RPNHead
from model.structures import SizeHW
from tests.support.oracle import blobs, make_frozen_pair, make_opinionated, make_pair, pin_scales, run_stages

SMALL: dict[str, Any] = {"min_size": 128, "max_size": 320, "rpn_post_nms_top_n_test": 300}

# name: (sizes of the images in a batch, keywords)
CASES: dict[str, tuple[list[SizeHW], dict[str, Any]]] = {
    "landscape": ([(120, 180)], SMALL),
    "portrait": ([(180, 120)], SMALL),
    "square, enlarged": ([(60, 60)], SMALL | {"min_size": 192}),
    "reduced": ([(400, 500)], SMALL),
    "one pixel": ([(1, 1)], SMALL),
    "7x5": ([(7, 5)], SMALL),
    "long 20:1": ([(20, 400)], SMALL),
    "tall 20:1": ([(400, 20)], SMALL),
    "long 40:1": ([(10, 400)], SMALL),
    "tall 40:1": ([(400, 10)], SMALL),
    "mixed batch": ([(120, 180), (180, 120), (90, 90)], SMALL),
    "mixed batch with extremes": ([(1, 1), (10, 300), (200, 150)], SMALL),
    "same size batch": ([(100, 150), (100, 150)], SMALL),
    "default sizes": ([(96, 120)], {}),
    "default number of proposals": ([(120, 180)], {"min_size": 160, "max_size": 320}),
    "max_size wins": ([(100, 300)], SMALL | {"min_size": 200, "max_size": 210}),
    "odd sizes": ([(101, 77)], SMALL | {"min_size": 133, "max_size": 199}),
    "tuple min_size": ([(100, 130)], SMALL | {"min_size": (96, 224, 160)}),
    "91 classes": ([(120, 180)], SMALL | {"num_classes": 91}),
    "2 classes": ([(120, 180)], SMALL | {"num_classes": 2}),
    "box_score_thresh": ([(120, 180)], SMALL | {"box_score_thresh": 0.4}),
    "box_nms_thresh": ([(120, 180)], SMALL | {"box_nms_thresh": 0.2}),
    "rpn_nms_thresh": ([(120, 180)], SMALL | {"rpn_nms_thresh": 0.3}),
    "rpn_score_thresh": ([(120, 180)], SMALL | {"rpn_score_thresh": 0.6}),
    "few proposals": (
        [(120, 180), (150, 100)],
        SMALL | {"rpn_pre_nms_top_n_test": 40, "rpn_post_nms_top_n_test": 25},
    ),
    "few detections": ([(120, 180)], SMALL | {"box_detections_per_img": 7}),
    "bbox_reg_weights": ([(120, 180)], SMALL | {"bbox_reg_weights": (5.0, 8.0, 2.5, 4.0)}),
    "mean and std": ([(120, 180)], SMALL | {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.25]}),
    "size_divisible": ([(120, 180)], SMALL | {"size_divisible": 64}),
    "fixed_size": ([(120, 180), (50, 200)], SMALL | {"fixed_size": (200, 150)}),
}


def assert_equal_stages(theirs: nn.Module, ours: nn.Module, images: list[Tensor]) -> list[dict[str, Tensor]]:
    expected, expected_detections = run_stages(theirs, images)
    got, detections = run_stages(ours, images)

    assert got.keys() == expected.keys()
    for stage, tensors in expected.items():
        assert len(got[stage]) == len(tensors), stage
        # Pixels for anchors and proposals; for the rest, relative to the largest number.
        for index, (value, tensor) in enumerate(zip(got[stage], tensors, strict=True)):
            in_pixels = stage in {"rpn", "rpn.anchor_generator"}
            atol = 1e-3 if in_pixels or not tensor.numel() else 1e-5 * max(1.0, float(tensor.abs().max()))
            torch.testing.assert_close(value, tensor, rtol=0, atol=atol, msg=f"{stage}[{index}]: {{}}".format)
    assert torch.equal(got["transform"][1], expected["transform"][1])
    assert torch.equal(got["rpn.anchor_generator"][0], expected["rpn.anchor_generator"][0])

    for found, wanted in zip(detections, expected_detections, strict=True):
        assert found.keys() == wanted.keys()
        assert torch.equal(found["labels"], wanted["labels"])
        torch.testing.assert_close(found["boxes"], wanted["boxes"], rtol=0, atol=1e-3)
        torch.testing.assert_close(found["scores"], wanted["scores"], rtol=0, atol=1e-5)
    assert all(len(found["labels"]) >= 5 for found in expected_detections), "finding nothing proves nothing"
    return expected_detections


@pytest.mark.parametrize("case", CASES)
def test_every_stage_equals_torchvisions(case: str) -> None:
    sizes, settings = CASES[case]
    theirs, ours = make_pair(**settings)
    images = [blobs(*size, seed) for seed, size in enumerate(sizes)]
    before = [image.clone() for image in images]

    detections = assert_equal_stages(theirs, ours, images)

    assert all(torch.equal(image, copy) for image, copy in zip(images, before, strict=True))
    for (height, width), found in zip(sizes, detections, strict=True):
        assert found["boxes"].min() >= 0
        assert found["boxes"][:, 2].max() <= width + 1e-3
        assert found["boxes"][:, 3].max() <= height + 1e-3


def test_without_any_proposal_nothing_is_found_as_in_torchvision() -> None:
    theirs, ours = make_pair(**SMALL, rpn_score_thresh=1.0)
    images = [blobs(120, 180), blobs(100, 60)]
    with torch.inference_mode():
        for found, wanted in zip(ours(images), theirs(images), strict=True):
            assert {key: value.shape for key, value in found.items()} == {k: v.shape for k, v in wanted.items()}
            assert found["labels"].numel() == 0


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_frozen_batch_norm_equals_torchvisions(eps: float) -> None:
    theirs, ours = make_frozen_pair(eps=eps, **SMALL)
    assert_equal_stages(theirs, ours, [blobs(120, 180), blobs(150, 90)])


@pytest.mark.parametrize("whose", [AnchorGenerator, TheirAnchorGenerator], ids=["ours", "torchvision's in ours"])
def test_custom_anchors_equal_torchvisions(whose: type) -> None:
    sizes = ((16, 24), (32, 48), (64, 96), (128, 192), (256, 384))
    ratios = ((0.25, 0.7, 1.4),) * 5
    torch.manual_seed(0)
    theirs = oracle.fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=6,
        rpn_anchor_generator=TheirAnchorGenerator(sizes, ratios),
        **SMALL,
    )
    make_opinionated(theirs)
    ours = fasterrcnn_resnet50_fpn(num_classes=6, rpn_anchor_generator=whose(sizes, ratios), **SMALL).eval()
    ours.load_state_dict(theirs.state_dict())
    theirs.roi_heads.box_roi_pool.scales = None  # inferred from the calibrating picture until now
    assert_equal_stages(theirs, ours, [blobs(120, 180), blobs(100, 60)])


THEIRS: dict[str, Any] = {
    "anchors": TheirAnchorGenerator,
    "rpn_head": TheirRPNHead,
    "roi_pool": TheirRoIAlign,
    "box_head": TheirBoxHead,
    "predictor": TheirPredictor,
}
OURS: dict[str, Any] = {
    "anchors": AnchorGenerator,
    "rpn_head": RPNHead,
    "roi_pool": MultiScaleRoIAlign,
    "box_head": TwoMLPHead,
    "predictor": FastRCNNPredictor,
}


def custom_components(of: dict[str, Any], channels: int, levels: int) -> dict[str, Any]:
    """Every component that can be handed in, none of them the default."""
    names = [str(level) for level in range(levels)]
    anchors = of["anchors"](tuple((24 * 2**level, 40 * 2**level) for level in range(levels)), ((0.5, 1.5),) * levels)
    return {
        "rpn_anchor_generator": anchors,
        "rpn_head": of["rpn_head"](channels, anchors.num_anchors_per_location()[0], conv_depth=2),
        "box_roi_pool": of["roi_pool"](names, 5, 1, canonical_scale=100, canonical_level=3),
        "box_head": of["box_head"](channels * 25, 64),
        "box_predictor": of["predictor"](64, 8),
    }


class OneMapBackbone(nn.Module):
    """A backbone without a pyramid: one feature map at stride 8, as a tensor."""

    out_channels = 24

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3 if i == 0 else 24, 24, 3, stride=2, padding=1) for i in range(3)), nn.Tanh()
        )

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.body(x)
        return maps


class TwoMapBackbone(nn.Module):
    """Two feature maps at strides 8 and 16, by name."""

    out_channels = 24

    def __init__(self) -> None:
        super().__init__()
        self.body = OneMapBackbone()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.body(x)
        return {"0": fine, "1": nn.functional.max_pool2d(fine, 2)}


@pytest.mark.parametrize("parts", [OURS, THEIRS], ids=["our components", "torchvision's components in ours"])
@pytest.mark.parametrize(("backbone", "levels"), [(OneMapBackbone, 1), (TwoMapBackbone, 2)])
def test_custom_components_equal_torchvisions(backbone: type[nn.Module], levels: int, parts: dict[str, Any]) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"min_size": 128, "max_size": 320}
    theirs = oracle.FasterRCNN(backbone(), **custom_components(THEIRS, 24, levels), **sizes)
    make_opinionated(theirs)
    theirs.roi_heads.box_roi_pool.scales = None
    ours = FasterRCNN(backbone(), **custom_components(parts, 24, levels), **sizes).eval()
    ours.load_state_dict(theirs.state_dict())
    assert_equal_stages(theirs, ours, [blobs(120, 180), blobs(100, 60)])


# 45 rows are padded to 64, so that the finest level has 16: over 45 that rounds to a half and not to a quarter.
MISLEADING = (45, 90)


@pytest.mark.parametrize("first", [MISLEADING, (96, 160)])
def test_roi_scales_are_inferred_from_the_first_batch_ever_seen(first: SizeHW) -> None:
    theirs, ours = make_pair(min_size=first[0], max_size=320)
    for model in (theirs, ours):
        run_stages(model, [blobs(*first)])
    scales = (0.5, 0.25, 0.125, 0.0625) if first == MISLEADING else (0.25, 0.125, 0.0625, 0.03125)
    assert tuple(theirs.roi_heads.box_roi_pool.scales) == ours.roi_heads.box_roi_pool.scales == scales
    # The next picture would suggest other scales, and is pooled with those of the first all the same.
    for model in (theirs, ours):
        model.transform.min_size = (128,)
    assert_equal_stages(theirs, ours, [blobs(96, 160)])
    assert ours.roi_heads.box_roi_pool.scales == scales


def test_pinned_roi_scales_are_not_moved_by_history() -> None:
    theirs, ours = make_pair(min_size=96, max_size=320)
    assert_equal_stages(theirs, ours, [blobs(96, 160)])  # the oracle's scales are the true ones

    _, pinned = make_pair(min_size=MISLEADING[0], max_size=320)
    pin_scales(pinned)
    run_stages(pinned, [blobs(*MISLEADING)])
    assert pinned.roi_heads.box_roi_pool.scales == (0.25, 0.125, 0.0625, 0.03125)
    pinned.transform.min_size = (96,)
    assert_equal_stages(theirs, pinned, [blobs(96, 160)])
