"""Detection, stage by stage, against torchvision with the same weights."""

from __future__ import annotations

import pytest
import torch
import torchvision.models.detection as oracle
import torchvision.ops
from torch import nn
from torchvision.models.detection import anchor_utils, faster_rcnn, rpn

from model import anchors, roi_heads, roi_pool
from model import faster_rcnn as ours_faster_rcnn
from model import rpn as ours_rpn

SMALL = {"min_size": 128, "max_size": 320}

# name: (sizes of the images in a batch, keywords)
CASES = {
    "landscape": ([(120, 180)], SMALL),
    "portrait": ([(180, 120)], SMALL),
    "square, enlarged": ([(60, 60)], {"min_size": 192, "max_size": 320}),
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
    "max_size wins": ([(100, 300)], {"min_size": 200, "max_size": 210}),
    "odd sizes": ([(101, 77)], {"min_size": 133, "max_size": 199}),
    "tuple min_size": ([(100, 130)], {"min_size": (96, 224, 160), "max_size": 320}),
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
MAY_FIND_NOTHING = {"one pixel", "7x5"}


def assert_equal_stages(run_stages, theirs, ours, images, *, finds_something=True):
    expected, expected_detections = run_stages(theirs, images)
    got, detections = run_stages(ours, images)

    assert got.keys() == expected.keys()
    for stage, tensors in expected.items():
        assert len(got[stage]) == len(tensors), stage
        # Pixels for anchors and proposals; for the rest, relative to the largest number.
        for index, (value, wanted) in enumerate(zip(got[stage], tensors, strict=True)):
            in_pixels = stage in {"rpn", "rpn.anchor_generator"}
            atol = 1e-3 if in_pixels or not wanted.numel() else 1e-5 * max(1.0, float(wanted.abs().max()))
            torch.testing.assert_close(
                value, wanted, rtol=0, atol=atol, msg=lambda m, s=stage, i=index: f"{s}[{i}]: {m}"
            )
    assert torch.equal(got["transform"][1], expected["transform"][1])
    assert torch.equal(got["rpn.anchor_generator"][0], expected["rpn.anchor_generator"][0])

    for found, wanted in zip(detections, expected_detections, strict=True):
        assert found.keys() == wanted.keys()
        assert torch.equal(found["labels"], wanted["labels"])
        torch.testing.assert_close(found["boxes"], wanted["boxes"], rtol=0, atol=1e-3)
        torch.testing.assert_close(found["scores"], wanted["scores"], rtol=0, atol=1e-5)
    if finds_something:
        assert all(len(found["labels"]) >= 5 for found in expected_detections), "finding nothing proves nothing"
    return expected_detections


@pytest.mark.parametrize("case", CASES)
def test_every_stage_equals_torchvisions(case, make_pair, run_stages, make_picture):
    sizes, settings = CASES[case]
    theirs, ours = make_pair(**settings)
    images = [make_picture(*size, seed) for seed, size in enumerate(sizes)]
    before = [image.clone() for image in images]

    detections = assert_equal_stages(run_stages, theirs, ours, images)

    assert all(torch.equal(image, copy) for image, copy in zip(images, before, strict=True))
    for (height, width), found in zip(sizes, detections, strict=True):
        assert found["boxes"].min() >= 0
        assert found["boxes"][:, 2].max() <= width + 1e-3
        assert found["boxes"][:, 3].max() <= height + 1e-3
