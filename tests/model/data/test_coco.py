from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from model.data.coco import is_named_for, read_coco_data
from model.data.samples import DataError
from model.evaluation.average_precision import evaluate
from model.structures import Detection
from tests.support.coco_files import content, write

SHARED_PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "coco_photos"


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


def test_records_that_make_no_sense_are_counted_and_the_others_used(tmp_path: Path) -> None:
    good = {"image_id": 0, "category_id": 7, "bbox": [10, 20, 30, 40], "iscrowd": "0"}
    odd = [
        {**good, "image_id": 99},
        {**good, "category_id": None},
        {**good, "image_id": None},
        {"category_id": 7, "bbox": [1, 2, 3, 4]},
        {**good, "bbox": [1]},
        {**good, "image_id": 2, "bbox": [50, 20, 30, 40]},  # of a second record of the same file
    ]
    made = content([good, *odd])
    made["images"] = [
        {"id": 0, "file_name": "0.png", "height": None, "width": None},
        {"id": 0, "file_name": "1.png"},
        {"id": 2, "file_name": "0.png"},
        {"id": 3, "file_name": "other/0.png"},
        {"id": 4},
        {"id": 1e999, "file_name": "5.png"},
    ]
    write(tmp_path, made)
    data, report = read_coco_data(tmp_path, "all")
    assert data.target(0)["boxes"].tolist() == [[10, 20, 40, 60], [50, 20, 80, 60]]
    assert report.counts() == {
        "annotation of an unknown image, left out": 3,
        "annotation without a known category or four finite numbers, left out": 2,
        "image record with the id of another, left out": 1,
        "image listed twice, its boxes joined": 1,
        "image record that means the file of another, left out": 1,
        "image record without an id or a file name, left out": 2,
    }


def test_a_stated_area_sorts_boxes_by_size_and_the_boxs_does_else(tmp_path: Path) -> None:
    box = {"image_id": 0, "category_id": 7, "bbox": [10, 20, 60, 40]}
    write(tmp_path, content([{**box, "area": 55.0}, box, {**box, "area": None}]))
    data, _ = read_coco_data(tmp_path, "all")
    assert data.areas(0).tolist() == [55, 2400, 2400]
    nothing = Detection(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), scores=torch.zeros(0))
    by_size = evaluate(data, [nothing]).by_size
    assert (by_size["small"].boxes, by_size["medium"].boxes) == (1, 2)


def test_a_json_may_be_one_split_alone(tmp_path: Path) -> None:
    box = {"category_id": 7, "bbox": [10, 20, 30, 40]}
    path = write(tmp_path, content([{**box, "image_id": n} for n in range(3)], images=3), "instances_val2017.json")
    assert is_named_for(path, "val")
    assert not is_named_for(path, "train")
    assert len(read_coco_data(path, "val", whole=True)[0]) == 3
    assert len(read_coco_data(path, "val")[0]) == 1


def test_two_years_of_a_split_are_a_question(tmp_path: Path) -> None:
    for year in (2014, 2017):
        write(tmp_path, content([]), f"annotations/instances_train{year}.json")
    with pytest.raises(DataError, match=r"train2014\.json.*train2017\.json.*name the one"):
        read_coco_data(tmp_path, "train")


def test_two_candidates_are_a_question(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(DataError, match=r"It has a.json, b.json: name the one"):
        read_coco_data(tmp_path, "train")


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


def test_the_jsons_that_are_there_are_told(tmp_path: Path) -> None:
    put(tmp_path, "train", FOUR, "train/_annotations.coco.json")
    with pytest.raises(DataError, match=r"neither a JSON of the split 'val'.*It has train/_annotations\.coco\.json"):
        read_coco_data(tmp_path, "val")


@pytest.mark.parametrize("name", ["Annotations/instances_train.json", "labels/train.json", "train.json"])
def test_a_json_of_another_split_is_not_divided(tmp_path: Path, name: str) -> None:
    """The images for validation would be among those that are learned."""
    write(tmp_path, content([{"image_id": 0, "category_id": 7, "bbox": [1, 2, 30, 40]}], images=3), name)
    assert len(read_coco_data(tmp_path, "train", keep_empty=True)[0]) == 3
    assert len(read_coco_data(tmp_path, "all", keep_empty=True)[0]) == 3
    with pytest.raises(DataError, match=rf"split 'val'.*It has {name}.*--validation-split none"):
        read_coco_data(tmp_path, "val", keep_empty=True)


def test_captions_and_key_points_beside_the_instances_are_no_question(tmp_path: Path) -> None:
    put(tmp_path, "images", FOUR, "annotations/instances_val2017.json")
    (tmp_path / "annotations" / "captions_val2017.json").write_text("{}")
    assert len(read_coco_data(tmp_path, "val")[0]) == 4


@pytest.mark.parametrize(("used", "learned"), [([1, 2], ["rbc", "wbc"]), ([0, 1], ["cells", "rbc", "wbc"])])
def test_a_category_that_only_holds_the_others_together_is_not_learned(
    tmp_path: Path, used: list[int], learned: list[str]
) -> None:
    made = content([{"image_id": 0, "category_id": number, "bbox": [10, 20, 30, 40]} for number in used])
    made["categories"] = [
        {"id": 0, "name": "cells", "supercategory": "none"},
        {"id": 1, "name": "rbc", "supercategory": "cells"},
        {"id": 2, "name": "wbc", "supercategory": "cells"},
    ]
    write(tmp_path, made)
    data, report = read_coco_data(tmp_path, "all")
    assert list(data.categories.objects().values()) == learned
    told = "category without boxes that is above the others, not learned"
    assert report.counts() == ({} if 0 in used else {told: 1})


def test_classes_that_differ_by_case_alone_are_told(tmp_path: Path) -> None:
    made = content([{"image_id": 0, "category_id": 7, "bbox": [10, 20, 30, 40]}])
    made["categories"].append({"id": 9, "name": "Dog"})
    write(tmp_path, made)
    _, report = read_coco_data(tmp_path, "all")
    assert "names differ by case alone, learned apart: dog and Dog" in "\n".join(report.lines())


@pytest.mark.skipif(not SHARED_PHOTOS.is_dir(), reason="the shared photographs are not here")
def test_real_photographs_are_read() -> None:
    data, report = read_coco_data(SHARED_PHOTOS, "all", keep_empty=True)
    assert len(data) == 33
    assert report.used_boxes is not None
    assert report.used_boxes > 200
