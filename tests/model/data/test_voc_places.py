"""Layouts of annotations in XML, as the challenge, Kaggle, Roboflow, LabelImg and others have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from model.data.samples import DataError
from model.data.sources import open_data
from tests.support.voc import write_voc

TRAIN, VAL = ("a", "b", "c"), ("d",)


def laid_out(path: Path, pictures: str, annotations: str, splits: Mapping[str, tuple[str, ...]]) -> Path:
    """The same small data in other folders, whose names may hold the split."""
    for split, names in splits.items():
        made = write_voc(path / "made" / split, {name: [("dog", 10, 20, 50, 60)] for name in names})
        for name in names:
            for kind, ending, to in (("JPEGImages", ".jpg", pictures), ("Annotations", ".xml", annotations)):
                folder = path / "data" / to.format(split=split)
                folder.mkdir(parents=True, exist_ok=True)
                (made / kind / f"{name}{ending}").rename(folder / f"{name}{ending}")
                (folder / f"._{name}{ending}").write_bytes(b"Mac OS X")
    return path / "data"


def names(path: Path, split: str) -> list[str]:
    data, report = open_data(str(path), split)
    assert report.counts() == {}
    return sorted(Path(data.name(index)).stem for index in range(len(data)))


@pytest.mark.parametrize(
    ("pictures", "annotations"),
    [
        ("images", "annotations"),  # Kaggle's
        ("Images", "Annotations"),
        ("JPEGImages", "Annotations"),
        ("VOCdevkit/VOC2012/JPEGImages", "VOCdevkit/VOC2012/Annotations"),
        ("images", "annotations/xmls"),
        ("pictures", "annotations"),
        (".", "."),  # LabelImg's
        ("some/folder", "some/folder"),
    ],
)
def test_data_without_splits_are_found_and_divided(tmp_path: Path, pictures: str, annotations: str) -> None:
    path = laid_out(tmp_path, pictures, annotations, {"": TRAIN + VAL})
    assert (names(path, "train"), names(path, "val")) == (["a", "b", "c"], ["d"])


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
@pytest.mark.parametrize(
    ("pictures", "annotations"),
    [
        ("{split}", "{split}"),  # Roboflow's
        ("{split}/images", "{split}/annotations"),
        ("images/{split}", "annotations/{split}"),
    ],
)
def test_a_folder_of_each_split_is_used_whole(tmp_path: Path, pictures: str, annotations: str, val: str) -> None:
    path = laid_out(tmp_path, pictures, annotations, {"train": TRAIN, val: VAL})
    assert (names(path, "train"), names(path, "val")) == (["a", "b", "c"], ["d"])


def test_masks_beside_the_pictures_are_not_taken_for_them(tmp_path: Path) -> None:
    path = laid_out(tmp_path, "JPEGImages", "Annotations", {"": TRAIN})
    (path / "SegmentationClass").mkdir()
    (path / "SegmentationClass" / "a.png").write_bytes(b"no picture")
    assert names(path, "all") == ["a", "b", "c"]


def test_several_sets_are_a_question(tmp_path: Path) -> None:
    splits = {"VOC2007": TRAIN, "VOC2012": VAL}
    path = laid_out(tmp_path, "VOCdevkit/{split}/JPEGImages", "VOCdevkit/{split}/Annotations", splits)
    with pytest.raises(DataError, match=r"2 folders.*VOC2007/Annotations, VOCdevkit/VOC2012/Annotations"):
        open_data(str(path), "train")
    assert names(path / "VOCdevkit" / "VOC2007", "all") == ["a", "b", "c"]


def test_a_split_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = laid_out(tmp_path, "{split}", "{split}", {"train": TRAIN})
    with pytest.raises(DataError, match=r"no folders of annotations.*the split 'val'. It has train"):
        open_data(str(path), "val")
