"""COCO data: a folder of images and a JSON of instances."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model.data.coco_places import FOLDERS_OF_JSON, ImagePlaces
from model.data.image_files import contents, files_below
from model.data.report import Report
from model.data.samples import DataError, FileData, RawBox, RawExample, held_out, object_names, settle
from model.data.splits import SPLITS, split_names
from model.structures import SizeHW
from model.weights.categories import Categories

Identity = int | str  # of an image or a category: a number, also one that is written as a text, or another text


def read_coco_data(
    path: Path,
    split: str,
    *,
    categories: Categories | None = None,
    keep_empty: bool = False,
    whole: bool = False,
    images: Path | None = None,
) -> tuple[FileData, Report]:
    """The images of a split that can be used, and the account of the others.

    Args:
        path: the JSON, or a folder with it: `annotations/instances_<split>*.json`, another that has the split in its
            name, `<split>/*.json`, or one JSON for all splits (see `held_out`). "valid" is "val", too. Images lie
            beside it, in `images`, `<split>` or `<split>2017`, or anywhere below under a name that no other has.
        categories: what the labels mean; by default the JSON's categories in the order of their ids.
        whole: a JSON for all splits is used whole, as this split.
        images: where the images lie.

    Raises:
        DataError: there is no such JSON, it is not COCO's, its images are not found, or nothing in it can be used.
    """
    json_path, is_shared = find_json(path, split)
    content = _read_json(json_path)
    report = Report(f"{json_path.name} {split}")
    try:
        names = _category_names(content)
        places = ImagePlaces(json_path, path, split, images)
        raw_examples = _raw_examples(content, names, places, report)
    except DataError:
        raise  # a ValueError, too, which says what is wrong already
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{json_path} is not a COCO file of instances: {type(error).__name__} {error}. It needs images "
            "(id, file_name), annotations (image_id, category_id, bbox) and categories (id, name)"
        ) from error
    if raw_examples and not any(raw.path.is_file() for raw in raw_examples):
        first = raw_examples[0].path.name
        raise DataError(
            f"none of the {len(raw_examples)} images of {json_path} is there: {first} is the first. {places}"
        )
    if is_shared and not whole:
        kept = set(held_out([str(raw.path) for raw in raw_examples], split))
        raw_examples = [raw for raw in raw_examples if str(raw.path) in kept]
    if categories is None:
        objects = object_names(_learned(content, names, report))
        if not objects:
            raise DataError(f"{json_path} has no categories")
        categories = Categories.of_objects(objects)
        report.note_alike(categories)
    return settle(raw_examples, categories, report, keep_empty=keep_empty), report


def find_json(path: Path, split: str) -> tuple[Path, bool]:
    """The split's JSON, and whether it holds all splits.

    Raises:
        DataError: there is none, or more than one that it might be.
    """
    if path.is_file():
        return path, True
    every = [file for file in files_below(path) if file.suffix.lower() == ".json"]
    if not every:
        raise DataError(
            f"{path} holds no labels that can be read: Pascal VOC has .xml in Annotations or beside its images, and "
            f"COCO a .json. {contents(path)}"
        )
    beside = [file for file in every if file.parent == path or _is_folder_of_json(file.parent, path)]
    of_split = [file for file in beside if file.parent != path and is_named_for(file, split, "instances_")]
    of_split = of_split or [file for file in beside if is_named_for(file, split)]
    of_split += [file for file in every if file.parent.parent == path and file.parent.name in split_names(split)]
    if len(of_split) > 1:
        names = ", ".join(str(p.relative_to(path)) for p in of_split)
        raise DataError(f"{path} has {names}, which may each be the split {split!r}: name the one to use")
    if of_split:
        return of_split[0], False
    if len(beside) == 1 and (split == "all" or not any(is_named_for(beside[0], other) for other in SPLITS)):
        return beside[0], True
    there = [str(file.relative_to(path)) for file in every]
    shown = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
    raise DataError(
        f"{path} has neither a JSON of the split {split!r} nor one for all splits. It has {shown}: name the one to "
        "use. Training does without one for validation by --validation-split none"
    )


def _is_folder_of_json(folder: Path, path: Path) -> bool:
    return folder.parent == path and folder.name.lower() in FOLDERS_OF_JSON


def is_named_for(path: Path, split: str, before: str = "") -> bool:
    """Whether a JSON says by its name that it is one split alone, as `instances_val2017.json` does."""
    names = "|".join(re.escape(name) for name in split_names(split))
    pattern = rf"(^|[_.-]){before}({names})\d*($|[_.-])"
    return path.is_file() and re.search(pattern, path.stem, re.IGNORECASE) is not None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a COCO file: its outermost value is not an object")
    return content


def _category_names(content: dict[str, Any]) -> dict[Identity, str]:
    """By id, in the order of the ids: numbers first."""
    names = {_identity(category["id"]): str(category["name"]).strip() for category in content["categories"]}
    known = {key: name for key, name in names.items() if key is not None}
    return {key: known[key] for key in sorted(known, key=lambda key: (isinstance(key, str), key))}


def _learned(content: dict[str, Any], names: dict[Identity, str], report: Report) -> list[str]:
    """The categories to learn: all except one that only groups the others, as Roboflow's number 0."""
    used = {_identity(one.get("category_id")) for one in content["annotations"] if isinstance(one, dict)}
    above = {str(one.get("supercategory")).strip() for one in content["categories"] if _identity(one["id"]) in used}
    phantoms = [key for key, name in names.items() if key == 0 and key not in used and name in above]
    for key in phantoms:
        report.note("category without boxes that is above the others, not learned", names[key])
    return [name for key, name in names.items() if key not in phantoms]


def _raw_examples(
    content: dict[str, Any], names: dict[Identity, str], places: ImagePlaces, report: Report
) -> list[RawExample]:
    """Read each record separately: a broken one is left out and counted, and the others are used."""
    found: dict[Path, dict[str, Any]] = {}
    path_of: dict[Identity, Path] = {}  # by the id of the image
    for image in content["images"]:
        number, file_name = (image.get("id"), image.get("file_name")) if isinstance(image, dict) else (None, None)
        number = _identity(number)
        if number is None or not isinstance(file_name, str) or not file_name:
            report.note("image record without an id or a file name, left out", str(file_name or number))
            continue
        path = places.find(file_name)
        if number in path_of:
            report.note("image record with the id of another, left out", file_name)
        elif path in found and found[path]["file_name"] != file_name:
            report.note("image record that means the file of another, left out", file_name)
        else:
            if path in found:
                report.note("image listed twice, its boxes joined", file_name)
            path_of[number] = path
            found.setdefault(path, image)
    if not found and content["images"]:
        raise ValueError("no image has an id and a file name")
    boxes = _boxes(content["annotations"], names, path_of, report)
    return [RawExample(path=path, stated_hw=_stated_hw(image), boxes=boxes[path]) for path, image in found.items()]


def _boxes(
    annotations: Iterable[Any], names: dict[Identity, str], path_of: dict[Identity, Path], report: Report
) -> defaultdict[Path, list[RawBox]]:
    boxes: defaultdict[Path, list[RawBox]] = defaultdict(list)
    for position, annotation in enumerate(annotations):
        record = annotation if isinstance(annotation, dict) else {}
        about = f"annotation {record.get('id', f'at {position}')}"
        path = path_of.get(_identity(record.get("image_id")))  # type: ignore[arg-type]  # None is no key
        raw = _box(record, names)
        if raw is None:
            report.note("annotation without a known category or four finite numbers, left out", about)
        elif path is None:
            report.note("annotation of an unknown image, left out", about)
        else:
            boxes[path].append(raw)
    return boxes


def _stated_hw(image: dict[str, Any]) -> SizeHW | None:
    height, width = _whole_number(image.get("height")), _whole_number(image.get("width"))
    return None if height is None or width is None else (height, width)


def _identity(value: Any) -> Identity | None:
    """An id as it is compared: 7, 7.0 and "7" are the same; another text is itself."""
    number = _whole_number(value)
    return value.strip() or None if number is None and isinstance(value, str) else number


def _whole_number(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _box(annotation: dict[str, Any], names: dict[Identity, str]) -> RawBox | None:
    name = names.get(_identity(annotation.get("category_id")))  # type: ignore[arg-type]  # None is no key
    try:
        x, y, width, height = (float(value) for value in annotation["bbox"])
    except (TypeError, ValueError, KeyError, OverflowError):
        return None
    if name is None or not all(abs(value) < float("inf") for value in (x, y, width, height)):
        return None
    return RawBox(
        class_name=name,
        xyxy=(x, y, x + width, y + height),
        is_crowd=str(annotation.get("iscrowd") or 0).strip().lower() not in {"0", "0.0", "", "false"},
        area=_area(annotation.get("area")),
    )


def _area(value: Any) -> float | None:
    try:
        area = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return area if 0 < area < float("inf") else None
