from __future__ import annotations

import hashlib

import pytest
import torch

from model.training.data import DataError
from model.training.sources import open_data
from model.training.synthetic import CLASS_NAMES, SyntheticData


def digest(data: SyntheticData, index: int) -> str:
    image, target = data[index]
    return hashlib.sha256(image.numpy().tobytes() + target["boxes"].numpy().tobytes()).hexdigest()


def test_the_same_arguments_draw_the_same_picture() -> None:
    first, second = SyntheticData(size_hw=(96, 128)), SyntheticData(size_hw=(96, 128))
    assert digest(first, 3) == digest(second, 3)
    assert digest(first, 3) != digest(first, 4)
    assert digest(first, 3) != digest(SyntheticData("val", size_hw=(96, 128)), 3)
    assert digest(first, 3) != digest(SyntheticData(size_hw=(96, 128), seed=1), 3)


def test_every_class_is_drawn_and_boxes_lie_inside() -> None:
    data = SyntheticData(count=20, size_hw=(120, 160))
    labels = set()
    for index in range(len(data)):
        image, target = data[index]
        assert image.shape == (3, 120, 160)
        assert image.dtype == torch.uint8
        boxes = target["boxes"]
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([160.0, 120.0])).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        labels |= set(target["labels"].tolist())
    assert labels == {1, 2, 3}


def test_a_box_bounds_its_cell_exactly() -> None:
    """White cells are far darker than the ground: inside the box there is one, just outside there is none."""
    data = SyntheticData(count=40, size_hw=(240, 320))
    for index in range(len(data)):
        image, target = data[index]
        alone = target["labels"].tolist().count(CLASS_NAMES.index("WBC") + 1) == 1
        if alone:
            box = target["boxes"][target["labels"] == CLASS_NAMES.index("WBC") + 1][0].int().tolist()
            inside = image[:, box[1] : box[3], box[0] : box[2]].float().mean()
            assert inside < image.float().mean()


def test_an_unknown_split_says_which_there_are() -> None:
    with pytest.raises(DataError, match="train, val"):
        open_data("synthetic", "dev")


@pytest.mark.parametrize("make", [lambda p: p / "nothing", lambda p: p])
def test_no_data_say_what_is_wanted(tmp_path: object, make: object) -> None:
    assert callable(make)
    with pytest.raises(DataError, match=r"Pascal VOC folder"):
        open_data(str(make(tmp_path)), "train")
