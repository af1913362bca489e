"""COCO data: a folder of images and a JSON of instances."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model.categories import Categories
from model.structures import SizeHW
from model.training.data import DataError, FileData, RawBox, RawExample, Report, held_out, settle


def read_coco_data(
    path: Path, split: str, *, categories: Categories | None = None, keep_empty: bool = False
) -> tuple[FileData, Report]:
    """The images of a split that can be used, and the account of the others.

    Args:
        path: the JSON, or a folder with it: `annotations/instances_<split>*.json`, `<split>.json`,
            `<split>/*.json`, or one JSON for all splits (see `held_out`). Images lie beside it, or in `images`,
            `<split>` or `<split>2017`.
        categories: what the labels mean; by default the JSON's categories in the order of their ids.

    Raises:
        DataError: there is no such JSON, it is not COCO's, or nothing in it can be used.
    """
    json_path, is_shared = find_json(path, split)
    content = _read_json(json_path)
    report = Report(f"{json_path.name} {split}")
    try:
        names = {int(category["id"]): str(category["name"]).strip() for category in content["categories"]}
        raw_examples = _raw_examples(content, names, _image_folders(json_path, path, split), report)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{json_path} is not a COCO file of instances: {type(error).__name__} {error}. It needs images "
            "(id, file_name), annotations (image_id, category_id, bbox) and categories (id, name)"
        ) from error
    if is_shared:
        kept = set(held_out([str(raw.path) for raw in raw_examples], split))
        raw_examples = [raw for raw in raw_examples if str(raw.path) in kept]
    if categories is None:
        if not names:
            raise DataError(f"{json_path} has no categories")
        categories = Categories.of_objects(list(dict.fromkeys(names[key] for key in sorted(names))))
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
    if of_split:
        return of_split[0], False
    shared = [*sorted(path.glob("*.json")), *sorted((path / "annotations").glob("*.json"))]
    if len(shared) == 1:
        return shared[0], True
    found = f"It has {', '.join(p.name for p in shared)}: name the one to use" if shared else "It has no .json"
    raise DataError(f"{path} has neither a JSON of the split {split!r} nor one for all splits. {found}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a COCO file: its outermost value is not an object")
    return content


def _image_folders(json_path: Path, path: Path, split: str) -> list[Path]:
    roots = dict.fromkeys([json_path.parent, path if path.is_dir() else path.parent, json_path.parent.parent])
    places = ("images", f"images/{split}", f"images/{split}2017", split, f"{split}2017", ".")
    return [folder for root in roots for place in places if (folder := root / place).is_dir()]


def _raw_examples(
    content: dict[str, Any], names: dict[int, str], folders: Iterable[Path], report: Report
) -> list[RawExample]:
    boxes: defaultdict[int, list[RawBox]] = defaultdict(list)
    for annotation in content["annotations"]:
        raw = _box(annotation, names)
        if raw is None:
            report.note("annotation without a known category or four finite numbers, left out", str(annotation["id"]))
        else:
            boxes[int(annotation["image_id"])].append(raw)
    folders = list(folders)
    return [
        RawExample(
            path=_image_path(str(image["file_name"]), folders),
            stated_hw=_stated_hw(image),
            boxes=boxes[int(image["id"])],
        )
        for image in content["images"]
    ]


def _image_path(file_name: str, folders: list[Path]) -> Path:
    """Some tools write a folder before the name; it need not exist here."""
    candidates = [folder / name for name in (file_name, Path(file_name).name) for folder in folders]
    return next((path for path in candidates if path.is_file()), folders[0] / Path(file_name).name)


def _stated_hw(image: dict[str, Any]) -> SizeHW | None:
    return (int(image["height"]), int(image["width"])) if "height" in image and "width" in image else None


def _box(annotation: dict[str, Any], names: dict[int, str]) -> RawBox | None:
    name = names.get(int(annotation["category_id"]))
    try:
        x, y, width, height = (float(value) for value in annotation["bbox"])
    except (TypeError, ValueError, KeyError):
        return None
    if name is None or not all(abs(value) < float("inf") for value in (x, y, width, height)):
        return None
    return RawBox(class_name=name, xyxy=(x, y, x + width, y + height), is_crowd=bool(annotation.get("iscrowd", 0)))
