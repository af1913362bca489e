"""COCO data: a folder of images and a JSON of instances."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from model.categories import Categories
from model.structures import SizeHW
from model.training.data import DataError, FileData, RawBox, RawExample, held_out, object_names, settle
from model.training.report import Report


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
        path: the JSON, or a folder with it: `annotations/instances_<split>*.json`, `<split>.json`,
            `<split>/*.json`, or one JSON for all splits (see `held_out`). Images lie beside it, or in `images`,
            `<split>` or `<split>2017`.
        categories: what the labels mean; by default the JSON's categories in the order of their ids.
        whole: a JSON for all splits is used whole, as this split.
        images: where the images lie.

    Raises:
        DataError: there is no such JSON, it is not COCO's, or nothing in it can be used.
    """
    json_path, is_shared = find_json(path, split)
    content = _read_json(json_path)
    report = Report(f"{json_path.name} {split}")
    try:
        names = {int(category["id"]): str(category["name"]).strip() for category in content["categories"]}
        raw_examples = _raw_examples(content, names, _image_folders(json_path, path, split, images), report)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{json_path} is not a COCO file of instances: {type(error).__name__} {error}. It needs images "
            "(id, file_name), annotations (image_id, category_id, bbox) and categories (id, name)"
        ) from error
    if is_shared and not whole:
        kept = set(held_out([str(raw.path) for raw in raw_examples], split))
        raw_examples = [raw for raw in raw_examples if str(raw.path) in kept]
    if categories is None:
        objects = object_names(names[key] for key in sorted(names))
        if not objects:
            raise DataError(f"{json_path} has no categories")
        categories = Categories.of_objects(objects)
    return settle(raw_examples, categories, report, keep_empty=keep_empty), report


def find_json(path: Path, split: str) -> tuple[Path, bool]:
    """The split's JSON, and whether it holds all splits.

    Raises:
        DataError: there is none, or more than one that it might be.
    """
    if path.is_file():
        return path, True
    of_split = [
        *sorted((path / "annotations").glob(f"instances_{split}*.json")),
        *sorted((path / "annotations").glob(f"{split}.json")),
        *sorted(path.glob(f"{split}.json")),
        *sorted((path / split).glob("*.json")),
    ]
    if len(of_split) > 1:
        names = ", ".join(str(p.relative_to(path)) for p in of_split)
        raise DataError(f"{path} has {names}, which may each be the split {split!r}: name the one to use")
    if of_split:
        return of_split[0], False
    shared = [*sorted(path.glob("*.json")), *sorted((path / "annotations").glob("*.json"))]
    if len(shared) == 1:
        return shared[0], True
    found = f"It has {', '.join(p.name for p in shared)}: name the one to use" if shared else "It has no .json"
    raise DataError(f"{path} has neither a JSON of the split {split!r} nor one for all splits. {found}")


def is_named_for(path: Path, split: str) -> bool:
    """Whether a JSON says by its name that it is one split alone, as `instances_val2017.json` does."""
    return path.is_file() and re.search(rf"(^|[_-]){re.escape(split)}\d*$", path.stem) is not None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a COCO file: its outermost value is not an object")
    return content


def _image_folders(json_path: Path, path: Path, split: str, images: Path | None) -> list[Path]:
    if images is not None:
        if not images.is_dir():
            raise DataError(f"there is no folder of images {images}")
        return [images]
    # From a folder named, nothing is read that lies outside of it.
    roots = dict.fromkeys([json_path.parent, path if path.is_dir() else json_path.parent.parent])
    places = ("images", f"images/{split}", f"images/{split}2017", split, f"{split}2017", ".")
    return [folder for root in roots for place in places if (folder := root / place).is_dir()]


def _raw_examples(
    content: dict[str, Any], names: dict[int, str], folders: list[Path], report: Report
) -> list[RawExample]:
    """Every record by itself: one that makes no sense is left out and counted, and the others are used."""
    found: dict[Path, dict[str, Any]] = {}
    path_of: dict[int, Path] = {}  # by the id of the image
    for image in content["images"]:
        number, file_name = (image.get("id"), image.get("file_name")) if isinstance(image, dict) else (None, None)
        number = _whole_number(number)
        if number is None or not isinstance(file_name, str) or not file_name:
            report.note("image record without an id or a file name, left out", str(file_name or number))
            continue
        path = _image_path(file_name, folders)
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
    annotations: Iterable[Any], names: dict[int, str], path_of: dict[int, Path], report: Report
) -> defaultdict[Path, list[RawBox]]:
    boxes: defaultdict[Path, list[RawBox]] = defaultdict(list)
    for position, annotation in enumerate(annotations):
        record = annotation if isinstance(annotation, dict) else {}
        about = f"annotation {record.get('id', f'at {position}')}"
        path = path_of.get(_whole_number(record.get("image_id")))  # type: ignore[arg-type]  # None is no key
        raw = _box(record, names)
        if raw is None:
            report.note("annotation without a known category or four finite numbers, left out", about)
        elif path is None:
            report.note("annotation of an unknown image, left out", about)
        else:
            boxes[path].append(raw)
    return boxes


def _image_path(file_name: str, folders: list[Path]) -> Path:
    """Some tools write a folder before the name, or a whole path of someone else's disk; only these folders count."""
    stated = PurePosixPath(file_name.replace("\\", "/"))
    is_inside = not stated.is_absolute() and ".." not in stated.parts
    candidates = [folder / name for name in ([stated] if is_inside else []) + [stated.name] for folder in folders]
    return next((path for path in candidates if path.is_file()), folders[0] / stated.name)


def _stated_hw(image: dict[str, Any]) -> SizeHW | None:
    height, width = _whole_number(image.get("height")), _whole_number(image.get("width"))
    return None if height is None or width is None else (height, width)


def _whole_number(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _box(annotation: dict[str, Any], names: dict[int, str]) -> RawBox | None:
    name = names.get(_whole_number(annotation.get("category_id")))  # type: ignore[arg-type]  # None is no key
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
