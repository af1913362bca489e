from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from model.data.samples import DataError
from model.data.voc import read_voc
from model.weights.categories import Categories
from tests.support.voc import write_voc


def test_boxes_labels_and_names_are_read_as_they_stand(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", {"a": [("dog", 10, 20, 50, 60), ("cat", 1, 2, 30, 40)]})
    data, report = read_voc(folder, "train")
    image, target = data[0]
    assert data.categories.names == ("__background__", "cat", "dog")
    assert target["boxes"].tolist() == [[10, 20, 50, 60], [1, 2, 30, 40]]
    assert target["labels"].tolist() == [2, 1]
    assert image.shape == (3, 80, 100)
    assert image.dtype == torch.uint8
    assert report.lines() == ["voc train: 1 images with 2 boxes"]


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


@pytest.mark.parametrize("ending", [".JPG", ".Jpg", ".jfif", ".BMP", ".TIF", ".TIFF", ".WEBP", ".gif", ".GIF", ".png"])
def test_pictures_of_any_ending_in_any_case_are_found(tmp_path: Path, ending: str) -> None:
    folder = write_voc(tmp_path / "voc", {"a.b": [("dog", 10, 20, 50, 60)]})
    (folder / "JPEGImages" / "a.b.jpg").unlink()
    kinds = {".tif": "TIFF", ".jpg": "JPEG", ".jfif": "JPEG"}
    low = ending.lower()
    Image.new("RGB", (100, 80)).save(folder / "JPEGImages" / f"a.b{ending}", kinds.get(low, low[1:].upper()))
    data, _ = read_voc(folder, "train")
    assert [data.name(index) for index in range(len(data))] == [f"a.b{ending}"]


def test_files_in_subfolders_and_upper_case_xml_are_used_and_hidden_ones_are_not(tmp_path: Path) -> None:
    box = [("dog", 10, 20, 50, 60)]
    folder = write_voc(tmp_path / "voc", {"a": box, "b": box, "c": box}, splits={})
    for path in (folder / "ImageSets" / "Main").glob("*.txt"):
        path.unlink()
    (folder / "ImageSets" / "Main").rmdir()
    for kind in ("Annotations", "JPEGImages"):
        (folder / kind / "sub").mkdir()
    (folder / "Annotations" / "a.xml").rename(folder / "Annotations" / "a.XML")
    (folder / "Annotations" / "b.xml").rename(folder / "Annotations" / "sub" / "b.xml")
    (folder / "JPEGImages" / "b.jpg").rename(folder / "JPEGImages" / "sub" / "b.jpg")
    (folder / "Annotations" / "._a.XML").write_bytes(b"Mac OS X")
    (folder / "JPEGImages" / "._a.jpg").write_bytes(b"Mac OS X")
    data, report = read_voc(folder, "all")
    assert [data.name(index) for index in range(len(data))] == ["a.jpg", "c.jpg", "b.jpg"]
    assert report.counts() == {}


def test_namespaces_and_several_boxes_of_an_object_are_read(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", {"a": [("dog", 10, 20, 50, 60)]})
    corners = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
    path = folder / "Annotations" / "a.xml"
    text = path.read_text().replace("</object>", f"{corners}<bndbox><xmin>x</xmin></bndbox></object>")
    path.write_text(text.replace("<annotation", '<annotation xmlns="urn:voc"', 1))
    data, report = read_voc(folder, "train")
    assert data[0][1]["boxes"].tolist() == [[10, 20, 50, 60], [1, 2, 30, 40]]
    assert report.counts() == {"object without a class name or four finite numbers, left out": 1}


def test_the_stated_name_finds_an_image_of_another_name(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", {"a": [("dog", 10, 20, 50, 60)]})
    (folder / "JPEGImages" / "a.jpg").rename(folder / "JPEGImages" / "other.jpg")
    path = folder / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("<annotation>", "<annotation><filename>C:\\data\\other.png</filename>"))
    data, _ = read_voc(folder, "train")
    assert data.name(0) == "other.jpg"


@pytest.mark.parametrize("name", ["EPS", "PCX"])
def test_only_common_formats_are_decoded(tmp_path: Path, name: str) -> None:
    folder = write_voc(tmp_path / "voc", {"a": [("dog", 1, 1, 20, 20)], "b": [("dog", 1, 1, 20, 20)]})
    Image.new("RGB", (100, 80)).save(folder / "JPEGImages" / "b.jpg", format=name)
    assert read_voc(folder, "train")[1].counts() == {"image broken or truncated, left out": 1}


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


def test_broken_images_and_missing_files_are_left_out_and_named(tmp_path: Path) -> None:
    box = [("dog", 1, 1, 20, 20)]
    folder = write_voc(
        tmp_path / "voc", {"good": box, "cut": box, "gone": box, "empty": box, "unlabelled": box, "badxml": box}
    )
    cut = folder / "JPEGImages" / "cut.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    (folder / "JPEGImages" / "gone.jpg").unlink()
    (folder / "JPEGImages" / "empty.jpg").write_bytes(b"")
    (folder / "Annotations" / "unlabelled.xml").unlink()
    (folder / "Annotations" / "badxml.xml").write_text("<annotation><object>")
    data, report = read_voc(folder, "train")
    assert [data.name(index) for index in range(len(data))] == ["good.jpg"]
    assert report.counts() == {
        "annotation file missing, image left out": 1,
        "annotation is not readable XML, image left out": 1,
        "image broken or truncated, left out": 2,
        "image file missing, left out": 1,
    }
    assert "cut.jpg" in "\n".join(report.lines())


def test_an_unknown_encoding_is_unreadable_xml(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", {"a": [("dog", 1, 1, 20, 20)], "b": [("dog", 1, 1, 20, 20)]})
    path = folder / "Annotations" / "b.xml"
    path.write_text(f'<?xml version="1.0" encoding="ansi"?>{path.read_text()}')
    assert read_voc(folder, "train")[1].counts() == {"annotation is not readable XML, image left out": 1}


def test_validation_speaks_of_the_classes_learned(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", {"a": [("dog", 1, 1, 20, 20), ("bird", 1, 1, 20, 20)]})
    data, report = read_voc(folder, "val", categories=Categories.of_objects(["cat", "dog"]))
    assert data[0][1]["labels"].tolist() == [2]
    assert report.counts() == {"box of the class 'bird', which is not learned, left out": 1}


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


def test_names_may_have_spaces_and_lists_a_second_column(tmp_path: Path) -> None:
    box = [("dog", 1, 1, 20, 20)]
    folder = write_voc(
        tmp_path / "voc",
        {"my image 1": box, "b": box, "c": box},
        splits={"train": ["my image 1", "b  1", "c.jpg -1", "../b"]},
    )
    data, report = read_voc(folder, "train")
    assert [data.name(index) for index in range(len(data))] == ["my image 1.jpg", "b.jpg", "c.jpg"]
    assert report.counts() == {"name of a file outside the folder, left out": 1}


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda f: (f / "ImageSets" / "Main" / "train.txt").unlink(),
            "no split 'train'.*Its splits: val.*--validation-split none",
        ),
        (lambda f: (f / "ImageSets" / "Main" / "train.txt").write_text("\n\n"), "is empty"),
        (lambda f: (f / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfe\x00\xd8"), "is not text"),
        (lambda f: (f / "JPEGImages" / "a.jpg").write_text("no image"), "No image with a usable box"),
        (lambda f: (f / "Annotations" / "a.xml").write_text("<annotation/>"), "has no box"),
        (lambda f: (f / "JPEGImages").rename(f / "Images"), "no JPEGImages"),
    ],
)
def test_data_that_cannot_be_used_say_why(tmp_path: Path, break_it: Callable[[Path], object], message: str) -> None:
    folder = write_voc(tmp_path / "voc", {"a": [("dog", 1, 1, 20, 20)]})
    break_it(folder)
    with pytest.raises(DataError, match=f"(?s){message}"):
        read_voc(folder, "train")
