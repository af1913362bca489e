from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.training.coco import read_coco_data
from model.training.data import DataError

SHARED_PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "coco_photos"


def write(folder: Path, content: dict[str, Any], name: str = "instances.json") -> Path:
    (folder / "images").mkdir(exist_ok=True)
    for image in content.get("images", []):
        Image.fromarray(np.zeros((80, 100, 3), np.uint8)).save(folder / "images" / Path(image["file_name"]).name)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def content(annotations: list[dict[str, Any]], images: int = 1) -> dict[str, Any]:
    return {
        "images": [{"id": n, "file_name": f"elsewhere/{n}.png", "height": 80, "width": 100} for n in range(images)],
        "annotations": [{"id": n, **annotation} for n, annotation in enumerate(annotations)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }


def test_boxes_become_corners_and_ids_become_labels_in_their_order(tmp_path: Path) -> None:
    write(tmp_path, content([{"image_id": 0, "category_id": 7, "bbox": [10, 20, 30, 40]}]))
    data, report = read_coco_data(tmp_path, "all")
    assert data.categories.names == ("__background__", "cat", "dog")
    assert data[0][1]["boxes"].tolist() == [[10, 20, 40, 60]]
    assert data[0][1]["labels"].tolist() == [2]
    assert report.counts() == {}


def test_crowd_boxes_are_kept_apart(tmp_path: Path) -> None:
    crowd = {"image_id": 0, "category_id": 3, "bbox": [0, 0, 90, 70], "iscrowd": 1}
    write(tmp_path, content([crowd, {"image_id": 0, "category_id": 7, "bbox": [10, 20, 30, 40], "iscrowd": 0}]))
    data, report = read_coco_data(tmp_path, "all")
    assert data[0][1]["labels"].tolist() == [2]
    boxes, labels = data.crowd_boxes(0)
    assert boxes.tolist() == [[0, 0, 90, 70]]
    assert labels.tolist() == [1]
    assert report.counts() == {"crowd box, not learned": 1}


def test_a_json_for_the_split_is_preferred(tmp_path: Path) -> None:
    box = {"image_id": 0, "category_id": 7, "bbox": [10, 20, 30, 40]}
    write(tmp_path, content([box]), "annotations/instances_val2017.json")
    write(tmp_path, content([box, {**box, "image_id": 1}], images=2), "annotations/instances_train2017.json")
    assert len(read_coco_data(tmp_path, "val")[0]) == 1
    assert len(read_coco_data(tmp_path, "train")[0]) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable JSON"),
        ("[" * 200_000, "not readable JSON"),
        ('{"images": [{"id": 1e999, "file_name": "a"}], "annotations": [], "categories": []}', "not a COCO|no cat"),
        ("[]", "outermost value"),
        ("{}", "not a COCO file of instances"),
        ('{"images": [], "annotations": [], "categories": []}', "has no categories"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "not a COCO file"),
    ],
)
def test_a_json_of_another_kind_says_why(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_coco_data(tmp_path, "all")


def test_two_candidates_are_a_question(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(DataError, match=r"It has a.json, b.json: name the one"):
        read_coco_data(tmp_path, "train")


@pytest.mark.skipif(not SHARED_PHOTOS.is_dir(), reason="the shared photographs are not here")
def test_real_photographs_are_read() -> None:
    data, report = read_coco_data(SHARED_PHOTOS, "all", keep_empty=True)
    assert len(data) == 33
    assert report.used_boxes > 200
