from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from model.data.voc import read_voc
from tests.support.voc import write_voc


def test_odd_boxes_are_put_right_or_left_out_and_counted(tmp_path: Path) -> None:
    folder = write_voc(
        tmp_path / "voc",
        {
            "a": [
                ("dog", -5, 10, 500, 60),  # clipped
                ("dog", 30, 30, 30, 60),  # no width
                ("dog", 200, 10, 220, 30),  # outside
                ("dog", 60, 10, 20, 30),  # xmin and xmax swapped
                ("__background__", 10, 10, 20, 30),
                ("dog", "nan", 1, 2, 3),
                ("", 1, 1, 20, 20),
                ("dog", "x", 1, 2, 3),
            ]
        },
    )
    data, report = read_voc(folder, "train")
    assert data[0][1]["boxes"].tolist() == [[0, 10, 100, 60]]
    assert report.counts() == {
        "box reaching out of the image, clipped": 1,
        "box without area inside the image, left out": 2,
        "box with its corners swapped, left out": 1,
        "box of the class '__background__', which is not learned, left out": 1,
        "object without a class name or four finite numbers, left out": 3,
    }


@pytest.mark.parametrize("name", ["EPS", "PCX"])
def test_only_common_formats_are_decoded(tmp_path: Path, name: str) -> None:
    folder = write_voc(tmp_path / "voc", {"a": [("dog", 1, 1, 20, 20)], "b": [("dog", 1, 1, 20, 20)]})
    Image.new("RGB", (100, 80)).save(folder / "JPEGImages" / "b.jpg", format=name)
    assert read_voc(folder, "train")[1].counts() == {"image of a kind that is not taken, left out": 1}


def test_a_wrong_stated_size_does_not_move_boxes(tmp_path: Path) -> None:
    data, report = read_voc(write_voc(tmp_path / "voc", {"a": [("dog", 10, 20, 50, 60)]}, stated_hw=(0, 0)), "train")
    assert data[0][1]["boxes"].tolist() == [[10, 20, 50, 60]]
    assert data.size_hw(0) == (80, 100)
    assert list(report.counts()) == ["annotation states a wrong image size, ignored"]


@pytest.mark.parametrize("keep_empty", [False, True])
def test_images_without_boxes_are_kept_only_where_asked(tmp_path: Path, keep_empty: bool) -> None:
    data, report = read_voc(
        write_voc(tmp_path / "voc", {"a": [("dog", 1, 1, 20, 20)], "b": []}), "train", keep_empty=keep_empty
    )
    assert len(data) == 1 + keep_empty
    assert sum("without boxes" in reason for reason in report.counts()) == 1


def test_without_lists_every_tenth_image_is_held_out(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", {f"{n:02d}": [("dog", 1, 1, 20, 20)] for n in range(20)})
    for path in (folder / "ImageSets" / "Main").glob("*.txt"):
        path.unlink()
    (folder / "ImageSets" / "Main").rmdir()
    val = read_voc(folder, "val")[0]
    assert [val.name(index) for index in range(len(val))] == ["09.jpg", "19.jpg"]
    assert len(read_voc(folder, "train")[0]) == 18
    assert len(read_voc(folder, "all")[0]) == 20


@pytest.mark.parametrize(("count", "held"), [(2, ["1.jpg"]), (9, ["8.jpg"])])
def test_of_a_few_images_one_is_held_out(tmp_path: Path, count: int, held: list[str]) -> None:
    folder = write_voc(tmp_path / "voc", {f"{n}": [("dog", 1, 1, 20, 20)] for n in range(count)}, splits={})
    for path in (folder / "ImageSets" / "Main").glob("*.txt"):
        path.unlink()
    (folder / "ImageSets" / "Main").rmdir()
    val = read_voc(folder, "val")[0]
    assert [val.name(index) for index in range(len(val))] == held
    assert len(read_voc(folder, "train")[0]) == count - 1
    assert len(read_voc(folder, "train", whole=True)[0]) == count
