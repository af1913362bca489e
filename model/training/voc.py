"""Pascal VOC folders: JPEGImages/, Annotations/*.xml, ImageSets/Main/<split>.txt."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from model.categories import Categories
from model.structures import SizeHW
from model.training.data import DataError, FileData, RawBox, RawExample, held_out, object_names, settle
from model.training.report import Report

_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".JPG", ".JPEG", ".PNG")


def is_voc(folder: Path) -> bool:
    return (folder / "Annotations").is_dir()


def read_voc(
    folder: Path, split: str, *, categories: Categories | None = None, keep_empty: bool = False, whole: bool = False
) -> tuple[FileData, Report]:
    """The images of a split that can be used, and the account of the others.

    Coordinates are taken as they stand: VOC's own begin at 1, those of most labelling tools at 0, and files do not
    tell which. Objects marked difficult are learned like others.

    Args:
        split: the name of a file in ImageSets/Main; without such a folder, see `held_out`.
        categories: what the labels mean; by default the class names found in the split, in alphabetical order.
        whole: a folder without lists is used whole, as this split.

    Raises:
        DataError: there is no such split, or nothing in it can be used.
    """
    if not (folder / "JPEGImages").is_dir():
        raise DataError(f"{folder} has Annotations but no JPEGImages: a Pascal VOC folder needs both")
    report = Report(f"{folder.name} {split}")
    raw_examples = []
    for name in _names(folder, split, whole):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            report.note("name of a file outside the folder, left out", name)
            continue
        raw = _read_annotation(folder, name, report)
        if raw is not None:
            raw_examples.append(raw)
    if categories is None:
        names = object_names(sorted({box.class_name for raw in raw_examples for box in raw.boxes}))
        if not names:
            raise DataError("\n".join([*report.lines(), f"{folder} has no box in its split {split!r}."]))
        categories = Categories.of_objects(names)
    return settle(raw_examples, categories, report, keep_empty=keep_empty), report


def _names(folder: Path, split: str, whole: bool) -> list[str]:
    lists = folder / "ImageSets" / "Main"
    if not lists.is_dir():
        return list(held_out([path.stem for path in (folder / "Annotations").glob("*.xml")], "all" if whole else split))
    path = lists / f"{split}.txt"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in lists.glob("*.txt"))) or "none"
        raise DataError(
            f"{folder} has no split {split!r}: there is no {path}. Its splits: {known}. "
            "Training does without one for validation by --validation-split none"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text: {error}. It should have the name of one image on each line") from error
    # VOC's own per-class lists have a second column, and some people's names have spaces.
    names = [_known_or_first(folder, line.strip()) for line in lines if line.strip()]
    if not names:
        raise DataError(f"{path} is empty. It should have the name of one image on each line")
    return list(dict.fromkeys(names))


def _known_or_first(folder: Path, line: str) -> str:
    """The name that a line means: all of it if it has an annotation, else without its second column."""
    for name in (line, re.sub(r"\s+-?[01]$", "", line)):
        bare = name.removesuffix(Path(name).suffix) if Path(name).suffix in _IMAGE_ENDINGS else name
        if (folder / "Annotations" / f"{bare}.xml").is_file():
            break
    return bare


def _read_annotation(folder: Path, name: str, report: Report) -> RawExample | None:
    path = folder / "Annotations" / f"{name}.xml"
    if not path.is_file():
        report.note("annotation file missing, image left out", name)
        return None
    try:
        root = ET.parse(path).getroot()  # noqa: S314 - expat bounds entity expansion; external ones are not fetched
    except (ET.ParseError, ValueError, LookupError):  # a LookupError is of an encoding that nobody knows
        report.note("annotation is not readable XML, image left out", path.name)
        return None
    boxes = []
    for element in root.iter("object"):
        box = _box(element)
        if box is None:
            report.note("object without a class name or four finite numbers, left out", path.name)
        else:
            boxes.append(box)
    return RawExample(path=_image_path(folder, name, root), stated_hw=_stated_hw(root), boxes=boxes)


def _image_path(folder: Path, name: str, root: ET.Element) -> Path:
    """By the annotation's own name; <filename> may name another ending, and <path> is someone else's disk."""
    images = folder / "JPEGImages"
    stated = Path((root.findtext("filename") or "").strip()).name
    candidates = [f"{name}{ending}" for ending in _IMAGE_ENDINGS] + ([stated] if stated else [])
    return next((images / c for c in candidates if (images / c).is_file()), images / f"{name}.jpg")


def _stated_hw(root: ET.Element) -> SizeHW | None:
    try:
        return int(root.findtext("size/height") or ""), int(root.findtext("size/width") or "")
    except ValueError:
        return None


def _box(element: ET.Element) -> RawBox | None:
    name = (element.findtext("name") or "").strip()
    try:
        x1, y1, x2, y2 = (float(element.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        return None
    finite = all(abs(value) < float("inf") for value in (x1, y1, x2, y2))
    return RawBox(class_name=name, xyxy=(x1, y1, x2, y2)) if name and finite else None
