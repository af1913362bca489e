from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform as TheirTransform

from model.structures import Detection, Target
from model.transform import IMAGENET_MEAN, IMAGENET_STD, GeneralizedRCNNTransform

GREY: dict[str, Any] = {"image_mean": (0.5,), "image_std": (0.25,)}


def transforms(**kwargs: Any) -> tuple[TheirTransform, GeneralizedRCNNTransform]:
    ours = GeneralizedRCNNTransform(**kwargs)
    defaults = {"min_size": 800, "max_size": 1333, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    return TheirTransform(**defaults | kwargs).eval(), ours.eval()


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((480, 640), (800, 1066), (800, 1088)),  # 640 * 800 / 480 = 1066.67
        ((640, 480), (1066, 800), (1088, 800)),
        ((500, 500), (800, 800), (800, 800)),
        ((100, 1000), (133, 1333), (160, 1344)),  # max_size wins
        ((1, 1), (800, 800), (800, 800)),
        ((1600, 1600), (800, 800), (800, 800)),
    ],
)
def test_sizes_by_hand(size: tuple[int, int], resized: tuple[int, int], padded: tuple[int, int]) -> None:
    transform = GeneralizedRCNNTransform()
    assert transform.resized_hw(size) == resized
    assert transform.padded_hw(size) == padded


@settings(max_examples=150)
@given(
    size=st.tuples(st.integers(1, 700), st.integers(1, 700)),
    limits=st.sampled_from([(800, 1333), (800, 800), (333, 500), (64, 1000), ((200, 320), 400)]),
    size_divisible=st.sampled_from([32, 1, 50]),
)
def test_sizes_equal_torchvisions(
    size: tuple[int, int], limits: tuple[int | tuple[int, ...], int], size_divisible: int
) -> None:
    min_size, max_size = limits
    theirs, ours = transforms(min_size=min_size, max_size=max_size, size_divisible=size_divisible, **GREY)
    assume(max(size) / min(size) < max_size)  # a longer one loses its short side, and torchvision fails
    image = torch.zeros(1, *size)
    expected, _ = theirs([image])
    batch = ours([image])
    assert batch.image_sizes == [tuple(size) for size in expected.image_sizes]
    assert batch.tensors.shape == expected.tensors.shape
    assert ours.resized_hw(size) == batch.image_sizes[0]
    assert ours.padded_hw(size) == tuple(batch.tensors.shape[-2:])


def test_a_line_longer_than_torchvision_takes_keeps_one_pixel() -> None:
    theirs, ours = transforms(min_size=64, max_size=100, **GREY)
    line = torch.rand(1, 1, 150)
    with pytest.raises(RuntimeError):
        theirs([line])
    batch = ours([line])
    assert batch.image_sizes == [(1, 100)] == [ours.resized_hw((1, 150))]
    assert batch.tensors.shape == (1, 1, 32, 128)


def test_normalise_by_hand() -> None:
    transform = GeneralizedRCNNTransform(image_mean=(0.5, 0.0, 1.0), image_std=(0.5, 1.0, 0.25))
    image = torch.tensor([1.0, 0.25, 0.5])[:, None, None]
    assert transform.normalise(image).flatten().tolist() == [1.0, 0.25, -2.0]


def test_images_lie_in_the_top_left_corner_and_the_rest_is_zero() -> None:
    transform = GeneralizedRCNNTransform(size_divisible=4)
    batch = transform.batch([torch.ones(1, 2, 5), torch.full((1, 3, 3), 2.0)])
    assert batch.tensors.shape == (2, 1, 4, 8)
    assert batch.image_sizes == [(2, 5), (3, 3)]
    assert batch.tensors[0, 0, :2, :5].eq(1).all()
    assert batch.tensors[1, 0, :3, :3].eq(2).all()
    assert batch.tensors.sum() == 10 + 18


def test_training_draws_each_image_its_size_and_detection_takes_the_last() -> None:
    transform = GeneralizedRCNNTransform(min_size=(32, 48, 64), max_size=200, **GREY)
    images = [torch.zeros(1, 20, 20)] * 30
    torch.manual_seed(0)
    drawn = {size for size, _ in transform.train()(images).image_sizes}
    assert drawn == {32, 48, 64}
    assert {size for size, _ in transform.eval()(images).image_sizes} == {64}


def test_targets_are_resized_alike_and_keep_their_other_keys() -> None:
    transform = GeneralizedRCNNTransform(min_size=40, max_size=200, **GREY)
    target: Target = {
        "boxes": torch.tensor([[1.0, 2.0, 3.0, 4.0]]),
        "labels": torch.tensor([5]),
        "image_id": torch.tensor(6),
    }
    batch, (resized,) = transform.with_targets([torch.zeros(1, 20, 30)], [target])
    assert batch.image_sizes == [(40, 60)]
    assert resized["boxes"].tolist() == [[2, 4, 6, 8]]
    assert resized["labels"] is target["labels"]
    assert resized["image_id"] is target["image_id"]
    assert target["boxes"].tolist() == [[1, 2, 3, 4]]


def test_restore_undoes_the_resize() -> None:
    transform = GeneralizedRCNNTransform()
    found = Detection(boxes=torch.tensor([[20.0, 10.0, 40.0, 30.0]]), labels=torch.tensor([1]), scores=torch.ones(1))
    (restored,) = transform.restore([found], [(100, 200)], [(50, 400)])
    assert restored["boxes"].tolist() == [[40, 5, 80, 15]]
    assert restored["labels"].tolist() == [1]


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "at least one image"),
        ([torch.zeros(20, 20)], ValueError, r"shape \[C, H, W\], not \[20, 20\]"),
        ([torch.zeros(1, 3, 20, 20)], ValueError, r"not \[1, 3, 20, 20\]"),
        ([torch.zeros(3, 20, 20, dtype=torch.uint8)], TypeError, "floating point with values in 0..1, not torch.uint8"),
    ],
)
def test_what_is_no_image_is_told(images: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GeneralizedRCNNTransform()(images)
