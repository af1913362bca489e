from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from model.data.coco import read_coco_data
from model.data.samples import DataError
from tests.support.coco_files import content, write


@pytest.mark.parametrize("prefix", ["{outside}/", "../"])
def test_images_outside_the_folder_are_not_opened(tmp_path: Path, prefix: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    made = content([{"image_id": n, "category_id": 7, "bbox": [10, 20, 30, 40]} for n in range(2)], images=2)
    write(folder, made)
    Image.new("RGB", (100, 80)).save(tmp_path / "secret.png")
    made["images"][0]["file_name"] = prefix.format(outside=tmp_path) + "secret.png"
    made["images"][1]["file_name"] = r"C:\elsewhere\1.png"  # known by its name
    (folder / "instances.json").write_text(json.dumps(made))
    data, report = read_coco_data(folder, "all")
    assert [data.name(index) for index in range(len(data))] == ["1.png"]
    assert report.counts() == {"image file missing, left out": 1}


def test_images_may_lie_elsewhere(tmp_path: Path) -> None:
    made = write(tmp_path, content([{"image_id": 0, "category_id": 7, "bbox": [10, 20, 30, 40]}]))
    (tmp_path / "images").rename(tmp_path / "pictures")
    assert len(read_coco_data(made, "all", images=tmp_path / "pictures")[0]) == 1
    with pytest.raises(DataError, match=r"^there is no folder of images .*gone$"):
        read_coco_data(made, "all", images=tmp_path / "gone")


def put(folder: Path, where: str, names: list[str], json_name: str, told: list[str] | None = None) -> None:
    """Images of a folder, and a JSON with one box in each."""
    (folder / where).mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (100, 80)).save(folder / where / name)
    made = {
        "images": [{"id": f"picture {n}", "file_name": name} for n, name in enumerate(told or names)],
        "annotations": [{"image_id": f"picture {n}", "category_id": "3", "bbox": [1, 2, 30, 40]} for n in range(4)],
        "categories": [{"id": 3, "name": "cat"}],
    }
    (folder / json_name).parent.mkdir(parents=True, exist_ok=True)
    (folder / json_name).write_text(json.dumps(made))


FOUR = [f"{n}.png" for n in range(4)]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_roboflows_folders_are_found_and_what_a_mac_adds_is_not(tmp_path: Path, split: str) -> None:
    for name in ("train", "valid", "test"):
        put(tmp_path, name, FOUR, f"{name}/_annotations.coco.json")
        (tmp_path / name / "._0.png").write_bytes(b"Mac OS X")
        (tmp_path / name / ".__annotations.coco.json").write_bytes(b"Mac OS X")
        (tmp_path / "__MACOSX" / name).mkdir(parents=True)
        (tmp_path / "__MACOSX" / name / "_annotations.coco.json").write_bytes(b"Mac OS X")
    data, report = read_coco_data(tmp_path, split)
    assert len(data) == 4
    assert report.counts() == {}


@pytest.mark.parametrize(
    ("where", "json_name"),
    [
        ("images/default", "annotations/instances_default.json"),  # CVAT
        ("data", "labels.json"),  # FiftyOne
        ("deep/below", "a.json"),
        ("pictures", "annotations/a.JSON"),
    ],
)
def test_images_are_found_wherever_they_lie_below(tmp_path: Path, where: str, json_name: str) -> None:
    put(tmp_path, where, FOUR, json_name)
    assert len(read_coco_data(tmp_path, "train")[0]) == 3
    assert len(read_coco_data(tmp_path / json_name, "all")[0]) == 4


@pytest.mark.parametrize(
    ("on_disk", "told"),
    [
        ("e\u0301{}.png", "\u00e9{}.png"),  # decomposed and composed
        ("\u00e9{}.png", "e\u0301{}.png"),
        ("a {}.png", "images/a%20{}.png"),
        ("100%25 {}.png", "100%25 {}.png"),  # as it is written, first
        ("{}.png", "C:\\data\\{}.png"),
        ("IMG_{}.PNG", "img_{}.png"),  # from a disk that takes either case
    ],
)
def test_names_that_are_spelled_otherwise_are_found(tmp_path: Path, on_disk: str, told: str) -> None:
    names, others = ([spelling.format(n) for n in range(4)] for spelling in (on_disk, told))
    put(tmp_path, "images", names, "a.json", others)
    assert len(read_coco_data(tmp_path, "all")[0]) == 4


def test_of_two_files_of_one_name_that_in_the_stated_folder_is_taken(tmp_path: Path) -> None:
    put(tmp_path, "deep/one", FOUR, "a.json", [f"one/{name}" for name in FOUR])
    Image.new("RGB", (10, 10)).save(tmp_path / "deep" / "0.png")
    data, _ = read_coco_data(tmp_path, "all")
    assert {data.size_hw(index) for index in range(4)} == {(80, 100)}


def test_images_that_are_nowhere_are_said_to_be_with_the_places(tmp_path: Path) -> None:
    put(tmp_path, "images", FOUR, "a.json", [f"other{n}.png" for n in range(4)])
    with pytest.raises(DataError, match=r"none of the 4 images .*other0\.png.*Looked in .*images.*below.*--images"):
        read_coco_data(tmp_path, "all")
