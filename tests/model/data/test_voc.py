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
    assert report.lines() == ["voc train: 1 image with 2 boxes"]


@pytest.mark.parametrize("ending", [".JPG", ".Jpg", ".jfif", ".BMP", ".TIF", ".TIFF", ".WEBP", ".gif", ".GIF", ".png"])
def test_pictures_of_any_ending_in_any_case_are_found(tmp_path: Path, ending: str) -> None:
    folder = write_voc(tmp_path / "voc", {"a.b": [("dog", 10, 20, 50, 60)]})
    (folder / "JPEGImages" / "a.b.jpg").unlink()
    kinds = {".tif": "TIFF", ".jpg": "JPEG", ".jfif": "JPEG"}
    low = ending.lower()
    Image.new("RGB", (100, 80)).save(folder / "JPEGImages" / f"a.b{ending}", kinds.get(low, low[1:].upper()))
    data, _ = read_voc(folder, "train")
    assert [data.name(index) for index in range(len(data))] == [f"a.b{ending}"]


def test_a_picture_whose_name_has_another_case_is_found(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", {"a": [("dog", 10, 20, 50, 60)]})
    (folder / "JPEGImages" / "a.jpg").rename(folder / "JPEGImages" / "A.JPG")
    data, _ = read_voc(folder, "train")
    assert [data.name(index) for index in range(len(data))] == ["A.JPG"]


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


def test_cvats_only_list_is_divided(tmp_path: Path) -> None:
    names = [f"{number:02}" for number in range(12)]
    splits = {"default": names[:11]}
    folder = write_voc(tmp_path / "voc", {name: [("dog", 1, 1, 20, 20)] for name in names}, splits=splits)
    assert [len(read_voc(folder, split)[0]) for split in ("train", "val", "default", "all")] == [10, 1, 11, 11]


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
        (lambda f: (f / "Annotations" / "a.xml").unlink(), "no folders of annotations"),
    ],
)
def test_data_that_cannot_be_used_say_why(tmp_path: Path, break_it: Callable[[Path], object], message: str) -> None:
    folder = write_voc(tmp_path / "voc", {"a": [("dog", 1, 1, 20, 20)]})
    break_it(folder)
    with pytest.raises(DataError, match=f"(?s){message}"):
        read_voc(folder, "train")
