"""The fixed-shape form against the eager serving form, with suppression in plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model.inference.fixed_shapes import FixedShapeHeads, detections_of
from model.inference.serving import ServingModel
from model.structures import SizeHW
from tests.support.oracle import blobs, make_pair, pin_scales
from tests.support.plain_nms import reference_nms_mask

SMALL: dict[str, Any] = {
    "min_size": 128,
    "max_size": 320,
    "rpn_pre_nms_top_n_test": 200,
    "rpn_post_nms_top_n_test": 150,
}
CASES: dict[str, tuple[list[SizeHW], dict[str, Any]]] = {
    "landscape": ([(120, 180)], SMALL),
    "one pixel": ([(1, 1)], SMALL),
    "long 40:1": ([(10, 400)], SMALL),
    "sides not divided by 32": ([(101, 77)], SMALL | {"min_size": 133, "max_size": 199}),
    "two sizes of one padded shape": ([(128, 192), (127, 191)], SMALL),
    "91 classes": ([(120, 180)], SMALL | {"num_classes": 91}),
    "rpn_score_thresh": ([(120, 180)], SMALL | {"rpn_score_thresh": 0.6}),
    "no proposal at all": ([(120, 180)], SMALL | {"rpn_score_thresh": 1.1}),
    "few proposals": ([(120, 180)], SMALL | {"rpn_pre_nms_top_n_test": 40, "rpn_post_nms_top_n_test": 25}),
    "few detections": ([(120, 180)], SMALL | {"box_detections_per_img": 3}),
    "box votes": ([(120, 180), (101, 77)], SMALL | {"box_vote_thresh": 0.6}),
    "bbox_reg_weights": ([(120, 180)], SMALL | {"bbox_reg_weights": (5.0, 8.0, 2.5, 4.0)}),
}


def form_of(**kwargs: Any) -> ServingModel:
    _, model = make_pair(**kwargs)
    pin_scales(model)
    return ServingModel(model)


@torch.inference_mode()
def fixed(form: ServingModel, images: list[Tensor], **kwargs: Any) -> Tensor:
    """The rows `[N, D + 1, 6]` of the fixed-shape form."""
    heads = FixedShapeHeads(form, nms_mask=reference_nms_mask, **kwargs)
    batch = form.transform(images)
    sizes = torch.tensor([
        (*resized, *(torch.tensor(image.shape[1:]) / torch.tensor(resized)).tolist())
        for image, resized in zip(images, batch.image_sizes, strict=True)
    ])  # fmt: skip
    anchors = heads.anchors(tuple(batch.tensors.shape[2:]), torch.device("cpu"))
    return heads(form.network(batch.tensors), anchors, sizes)


@pytest.mark.parametrize("case", CASES)
def test_finds_what_the_eager_form_finds(case: str) -> None:
    sizes, kwargs = CASES[case]
    form = form_of(**kwargs)
    images = [blobs(*size, seed) for seed, size in enumerate(sizes)]
    wanted = form.detect(images)
    for found, eager in zip(detections_of(fixed(form, images).numpy()), wanted, strict=True):
        assert found is not None
        assert found["labels"].equal(eager["labels"])
        torch.testing.assert_close(found["boxes"], eager["boxes"], rtol=0, atol=1e-3)
        torch.testing.assert_close(found["scores"], eager["scores"], rtol=0, atol=1e-6)
    assert any(len(eager["labels"]) for eager in wanted) or case == "no proposal at all"


def test_an_answer_that_may_be_incomplete_says_so() -> None:
    form, images = form_of(**SMALL), [blobs(120, 180)]
    (eager,) = form.detect(images)
    assert len(eager["labels"]) > 30
    assert detections_of(fixed(form, images, candidates=30).numpy()) == [None]


def test_few_candidates_are_enough_once_as_many_are_kept_as_are_asked_for() -> None:
    form, images = form_of(**SMALL | {"box_detections_per_img": 3}), [blobs(120, 180)]
    (eager,) = form.detect(images)
    (found,) = detections_of(fixed(form, images, candidates=30).numpy())
    assert found is not None
    torch.testing.assert_close(found["boxes"], eager["boxes"], rtol=0, atol=1e-3)


def test_every_candidate_has_a_vote() -> None:
    """Those that are not looked at would have one, so what is kept is not enough."""
    form, images = form_of(**SMALL | {"box_detections_per_img": 3, "box_vote_thresh": 0.6}), [blobs(120, 180)]
    assert detections_of(fixed(form, images, candidates=30).numpy()) == [None]


def test_votes_move_boxes_and_nothing_else() -> None:
    images = [blobs(120, 180)]
    (plain,), (voted,) = (form_of(**SMALL | {"box_vote_thresh": thresh}).detect(images) for thresh in (None, 0.6))
    assert plain["labels"].equal(voted["labels"])
    assert plain["scores"].equal(voted["scores"])
    assert (plain["boxes"] - voted["boxes"]).abs().amax(1).gt(0.1).sum() > 3
