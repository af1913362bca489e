"""Whether an image's detections depend on its neighbours in the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.faster_rcnn import FasterRCNN
from model.structures import Detection
from tests.support.oracle import blobs, make_pair, pin_scales


@pytest.fixture(scope="module")
def detector() -> FasterRCNN:
    _, ours = make_pair(min_size=128, max_size=256, rpn_post_nms_top_n_test=300)
    pin_scales(ours)
    return ours.double()  # in float32, rounding may decide the order of scores that nearly tie


@torch.no_grad()
def alone_and_together(detector: FasterRCNN, images: list[Tensor]) -> tuple[list[Detection], list[Detection]]:
    images = [image.double() for image in images]
    return [detector([image])[0] for image in images], detector(images)


def test_images_of_one_padded_shape_do_not_change_each_other(detector: FasterRCNN) -> None:
    # Resized to 128 x 192, 128 x 180 and 121 x 170 of 128 x 192: one padded shape, three sizes.
    images = [blobs(128, 192), blobs(96, 135, 1), blobs(256, 350, 2)]
    sizes = [detector.transform.resized_hw((image.shape[1], image.shape[2])) for image in images]
    assert len(set(sizes)) == 3
    assert {detector.transform.padded_hw((image.shape[1], image.shape[2])) for image in images} == {(128, 192)}
    for alone, together in zip(*alone_and_together(detector, images), strict=True):
        assert len(alone["labels"]) > 10
        assert torch.equal(alone["labels"], together["labels"])
        # Not always bit for bit: the convolutions' and products' order of adding up goes by the batch's size.
        torch.testing.assert_close(together["boxes"], alone["boxes"], rtol=0, atol=1e-6)
        torch.testing.assert_close(together["scores"], alone["scores"], rtol=0, atol=1e-8)


def test_a_larger_neighbour_does_change_the_answer(detector: FasterRCNN) -> None:
    # More padding moves the zeros at the border and, on coarse levels, the anchors' stride: the service never mixes.
    images = [blobs(128, 150), blobs(128, 256)]
    (alone, _), (together, _) = alone_and_together(detector, images)
    assert len(alone["labels"]) > 10
    assert alone["scores"].shape != together["scores"].shape or not torch.allclose(
        alone["scores"], together["scores"], rtol=0, atol=1e-4
    )
