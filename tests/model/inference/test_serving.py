"""The serving form against torchvision, stage by stage and as a whole."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import torchvision.models.detection as oracle
from torch import Tensor, nn
from torchvision.ops import box_iou
from torchvision.ops.poolers import LevelMapper

from model import fasterrcnn_resnet50_fpn
from model.data.synthetic import SyntheticData
from model.inference.network import TorchNetwork, UnsupportedModelError
from model.inference.serving import ServingModel
from model.structures import Detection, SizeHW
from model.weights.checkpoints import bundled_is_present
from tests.support.oracle import STRIDES, blobs, make_pair, pin_scales

needs_bundled = pytest.mark.skipif(not bundled_is_present(), reason="the bundled weights are not built")

SMALL: dict[str, Any] = {"min_size": 128, "max_size": 320, "rpn_post_nms_top_n_test": 300}
CASES: dict[str, tuple[list[SizeHW], dict[str, Any]]] = {
    "landscape": ([(120, 180)], SMALL),
    "one pixel": ([(1, 1)], SMALL),
    "long 40:1": ([(10, 400)], SMALL),
    "odd sizes": ([(101, 77)], SMALL | {"min_size": 133, "max_size": 199}),
    "one padded shape": ([(128, 192), (96, 135)], SMALL),
    "mixed batch": ([(120, 180), (180, 120), (90, 90)], SMALL),
    "91 classes": ([(120, 180)], SMALL | {"num_classes": 91}),
    "rpn_score_thresh": ([(120, 180)], SMALL | {"rpn_score_thresh": 0.6}),
    "few proposals": ([(120, 180)], SMALL | {"rpn_pre_nms_top_n_test": 40, "rpn_post_nms_top_n_test": 25}),
    "bbox_reg_weights": ([(120, 180)], SMALL | {"bbox_reg_weights": (5.0, 8.0, 2.5, 4.0)}),
}


def serving_pair(dtype: torch.dtype = torch.float32, **kwargs: Any) -> tuple[oracle.FasterRCNN, ServingModel]:
    theirs, ours = make_pair(**kwargs)
    theirs.roi_heads.box_roi_pool.scales = [1 / stride for stride in STRIDES]
    theirs.roi_heads.box_roi_pool.map_levels = LevelMapper(2, 5)
    pin_scales(ours)
    return theirs, ServingModel(ours, dtype=dtype)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_float32_detects_what_torchvision_does(case: str) -> None:
    sizes, kwargs = CASES[case]
    theirs, ours = serving_pair(**kwargs)
    images = [blobs(*size, seed) for seed, size in enumerate(sizes)]
    for wanted, got in zip(theirs(images), ours.detect(images), strict=True):
        # Folding rounds elsewhere, and these weights exaggerate it: it may decide what is suppressed, or which score
        # is the last of a full list. In float64, below, it decides nothing.
        for one, other in ((wanted, got), (got, wanted)):
            assert share_found(one, other, box_atol=0.05, score_atol=5e-4) > 0.95
    assert any(len(found["labels"]) for found in ours.detect(images))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_float64_detects_exactly_what_torchvision_does(case: str) -> None:
    sizes, kwargs = CASES[case]
    theirs, ours = serving_pair(dtype=torch.float64, **kwargs)
    images = [blobs(*size, seed) for seed, size in enumerate(sizes)]
    wanted_ones = theirs.double()([image.double() for image in images])
    for wanted, got in zip(wanted_ones, ours.detect(images), strict=True):
        assert len(got["labels"]) == len(wanted["labels"])
        assert matched(wanted, got, box_atol=0.05, score_atol=5e-4).all()


@torch.no_grad()
def test_votes_move_boxes_as_in_the_model_itself() -> None:
    _, model = make_pair(**SMALL | {"box_vote_thresh": 0.6})
    pin_scales(model)
    image = blobs(120, 180)
    (wanted,), (got,) = model([image]), ServingModel(model).detect([image])
    clear = wanted["scores"] > wanted["scores"].min() + 2e-3
    assert clear.sum() > 10
    assert matched(wanted, got, box_atol=0.05, score_atol=5e-4)[clear].all()


def matched(wanted: Detection, got: Detection, *, box_atol: float, score_atol: float) -> Tensor:
    """Which wanted detections have one of the same class, place and score; bool `[D]`."""
    is_near = (wanted["boxes"][:, None] - got["boxes"]).abs().amax(-1) <= box_atol
    is_near &= (wanted["scores"][:, None] - got["scores"]).abs() <= score_atol
    return (is_near & (wanted["labels"][:, None] == got["labels"])).any(1)


def share_found(wanted: Detection, got: Detection, *, box_atol: float, score_atol: float) -> float:
    """Of the wanted detections that are not at the end of a full list; 1 if there are none."""
    scores = wanted["scores"]
    clear = scores > scores.min() + 2e-3 if len(scores) == 100 else torch.ones_like(scores, dtype=torch.bool)
    found = matched(wanted, got, box_atol=box_atol, score_atol=score_atol)[clear]
    return float(found.double().mean()) if len(found) else 1.0


@needs_bundled
@torch.no_grad()
def test_trained_weights_detect_the_same_in_every_form() -> None:
    model = fasterrcnn_resnet50_fpn(weights="bundled").eval()
    pin_scales(model)
    image = SyntheticData("test", count=1)[0][0].float() / 255
    (wanted,) = model([image])
    sure = wanted["scores"] > 0.5
    assert sure.sum() > 3

    (exact,) = ServingModel(model).detect([image])
    assert matched(wanted, exact, box_atol=0.01, score_atol=1e-4)[sure].all()
    assert matched(exact, wanted, box_atol=0.01, score_atol=1e-4)[exact["scores"] > 0.5].all()

    (rounded,) = ServingModel(model, dtype=torch.bfloat16).detect([image])
    assert rounded["boxes"].dtype == rounded["scores"].dtype == torch.float32
    overlap = box_iou(wanted["boxes"][sure], rounded["boxes"])
    overlap[wanted["labels"][sure][:, None] != rounded["labels"]] = 0
    best = overlap.max(dim=1)
    assert best.values.min() > 0.9
    torch.testing.assert_close(rounded["scores"][best.indices], wanted["scores"][sure], rtol=0, atol=0.05)


@torch.no_grad()
def test_images_of_one_padded_shape_do_not_change_each_other() -> None:
    # In float64: in float32, the order of scores that nearly tie goes by the batch's size on some processors.
    _, model = serving_pair(dtype=torch.float64, **SMALL)
    images = [blobs(128, 192), blobs(96, 135, 1), blobs(256, 350, 2)]
    for image, together in zip(images, model.detect(images), strict=True):
        (alone,) = model.detect([image])
        assert len(alone["labels"]) > 10
        assert torch.equal(alone["labels"], together["labels"])
        torch.testing.assert_close(together["boxes"], alone["boxes"], rtol=0, atol=1e-4)
        torch.testing.assert_close(together["scores"], alone["scores"], rtol=0, atol=1e-6)


def test_other_architectures_are_rejected() -> None:
    _, model = make_pair(**SMALL)
    with pytest.raises(UnsupportedModelError, match="pinned"):
        ServingModel(model)
    pin_scales(model)
    model.roi_heads.box_head = nn.Flatten()
    with pytest.raises(UnsupportedModelError, match="box head of type Flatten"):
        ServingModel(model)
    model.rpn.head = nn.Identity()
    with pytest.raises(UnsupportedModelError, match="RPN head"):
        TorchNetwork(model)


def test_the_original_is_left_as_it_was() -> None:
    _, model = make_pair(**SMALL)
    pin_scales(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ServingModel(model, dtype=torch.bfloat16).detect([blobs(120, 180)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_originals_weights_are_let_go() -> None:
    _, model = make_pair(**SMALL)
    pin_scales(model)
    body, hidden = weakref.ref(model.backbone), weakref.ref(model.get_parameter("roi_heads.box_head.fc6.weight"))
    served = ServingModel(model)
    del model
    gc.collect()
    assert served.precision == "fp32"
    assert body() is None
    assert hidden() is None


def test_an_untrained_detector_serves() -> None:
    model = fasterrcnn_resnet50_fpn(num_classes=3, min_size=64, max_size=64).eval()
    pin_scales(model)
    (found,) = ServingModel(model).detect([torch.rand(3, 40, 50)])
    assert found["boxes"].shape == (len(found["scores"]), 4)
