from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.structures import Target
from model.training.augmentation import Augmentation, flip_horizontally, flip_vertically


def blob(height: int, width: int, box: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """A black picture with a white box, and that box."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    x1, y1, x2, y2 = box
    image[:, y1:y2, x1:x2] = 255
    return image, torch.tensor([box], dtype=torch.float32)


def bounds(image: Tensor) -> list[float]:
    ys, xs = torch.where(image[0] > 0.5)
    return [float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)]


def test_flips_by_hand() -> None:
    image, boxes = blob(6, 10, (1, 2, 4, 5))
    assert flip_horizontally(image, boxes)[1].tolist() == [[6, 2, 9, 5]]
    assert flip_vertically(image, boxes)[1].tolist() == [[1, 1, 4, 4]]


@given(seed=st.integers(0, 10_000), crop=st.sampled_from([1.0, 0.8, 0.5]), transpose=st.booleans())
def test_boxes_stay_on_what_they_bound(seed: int, crop: float, transpose: bool) -> None:
    torch.manual_seed(seed)
    image, boxes = blob(40, 60, (10, 8, 34, 30))
    augmentation = Augmentation(flips="dihedral", crop=crop, min_visible=0.0)
    target: Target = {"boxes": boxes, "labels": torch.tensor([3])}
    changed, changed_target = augmentation(image, target, transpose=transpose)
    shape = (round(40 * crop), round(60 * crop))
    assert tuple(changed.shape[1:]) == (shape[::-1] if transpose else shape)
    if len(changed_target["boxes"]):
        assert changed_target["boxes"].tolist() == [bounds(changed)]
        assert changed_target["labels"].tolist() == [3]


def test_a_crop_drops_what_it_hardly_shows() -> None:
    image, boxes = blob(100, 100, (0, 0, 100, 100))
    target: Target = {"boxes": boxes, "labels": torch.tensor([1])}
    cropped = Augmentation(flips="none", crop=0.5, min_visible=0.3)(image, target, transpose=False)
    assert cropped[1]["boxes"].shape == (0, 4)


def test_colour_changes_pixels_only_and_stays_in_range() -> None:
    torch.manual_seed(0)
    image, boxes = blob(20, 20, (2, 2, 9, 9))
    target: Target = {"boxes": boxes, "labels": torch.tensor([1])}
    changed, kept = Augmentation(flips="none", colour=0.5)(image, target, transpose=False)
    assert not changed.equal(image / 255)
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert kept["boxes"].equal(boxes)


def test_without_changes_the_pixels_are_those_of_the_file_in_0_to_1() -> None:
    image = torch.arange(256, dtype=torch.uint8).expand(3, 2, 256)
    target: Target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    changed, _ = Augmentation(flips="none")(image, target, transpose=False)
    assert changed.equal(image.float() / 255)


@given(seed=st.integers(0, 10_000), crop=st.sampled_from([1.0, 0.7]), colour=st.sampled_from([0.0, 0.3]))
def test_geometry_on_bytes_is_geometry_on_floats(seed: int, crop: float, colour: float) -> None:
    """Bit for bit: bytes move less memory, and change no number of a run."""
    image = torch.randint(256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    target: Target = {"boxes": torch.tensor([[2.0, 3.0, 9.0, 11.0]]), "labels": torch.tensor([1])}
    augmentation = Augmentation(flips="dihedral", crop=crop, colour=colour)
    changed = []
    for kind in (image, image.float()):
        torch.manual_seed(seed)
        changed.append(augmentation(kind, target, transpose=augmentation.draw_transpose())[0])
    assert changed[0].equal(changed[1])


def test_another_device_changes_neither_draws_nor_boxes_and_is_never_waited_for() -> None:
    """The meta device has no values, so it raises where the host would wait for one."""
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    target: Target = {"boxes": torch.tensor([[10.0, 8.0, 34.0, 30.0]]), "labels": torch.tensor([3])}
    augmentation = Augmentation(flips="dihedral", crop=0.8, colour=0.2)
    found = []
    for device in ("cpu", "meta"):
        torch.manual_seed(5)
        changed, changed_target = augmentation(image.to(device), target, transpose=True)
        found.append((changed.shape, changed_target["boxes"].tolist(), torch.rand(()).item()))
        assert changed.device.type == device
    assert found[0] == found[1]


@pytest.mark.parametrize("wrong", [{"flips": "sideways"}, {"crop": 0.0}])
def test_what_cannot_be_meant_is_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Augmentation(**wrong)
