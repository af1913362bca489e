"""Pascal VOC data: annotations in XML, images, and lists of them in ImageSets/Main/<split>.txt."""

from __future__ import annotations

import re
import unicodedata
import xml.etree.ElementTree as ET
from pathlib import Path, PurePosixPath

from model.data.image_files import ImageIndex, files_below, is_image
from model.data.report import Report
from model.data.samples import DataError, FileData, RawBox, RawExample, held_out, object_names, settle
from model.data.voc_places import VocPlace, find_voc
from model.structures import SizeHW
from model.weights.categories import Categories

_UNSPLIT = "default"  # what CVAT calls the only list of data without splits


def read_voc(
    folder: Path, split: str, *, categories: Categories | None = None, keep_empty: bool = False, whole: bool = False
) -> tuple[FileData, Report]:
    """The images of a split that can be used, and the account of the others.

    Coordinates are used as they are: VOC's own begin at 1, those of most labelling tools at 0, and files do not
    say which. Objects marked difficult are learned like others, and each bndbox of an object is a separate box.
    Images may have any ending of a picture, in any case; both they and annotations may lie in subfolders.

    Args:
        folder: holds the data, as `find_voc` finds them.
        split: the name of a file in ImageSets/Main, or of a folder; without such, see `held_out`.
        categories: what the labels mean; by default the class names found in the split, in alphabetical order.
        whole: a folder without lists is used whole, as this split.

    Raises:
        DataError: there is no such split, or nothing in it can be used.
    """
    place = find_voc(folder, split)
    report = Report(f"{folder.name} {split}")
    raw_examples = []
    annotations = _annotations(place.annotations)
    pictures = ImageIndex([place.images])
    for name in _names(place.folder, split, whole or place.is_of_split, annotations):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            report.note("name of a file outside the folder, left out", name)
            continue
        raw = _read_annotation(place, name, annotations, pictures, report)
        if raw is not None:
            raw_examples.append(raw)
    if categories is None:
        names = object_names(sorted({box.class_name for raw in raw_examples for box in raw.boxes}))
        if not names:
            raise DataError("\n".join([*report.lines(), f"{folder} has no box in its split {split!r}."]))
        categories = Categories.of_objects(names)
        report.note_alike(categories)
    return settle(raw_examples, categories, report, keep_empty=keep_empty), report


def _annotations(root: Path) -> dict[str, Path]:
    """Every annotation by its path below their folder, without the ending."""
    files = [path for path in files_below(root) if path.suffix.lower() == ".xml"]
    return {_composed(path.relative_to(root).with_suffix("").as_posix()): path for path in files}


def _composed(name: str) -> str:
    """In the spelling of Unicode that is usual in text, which a Mac's disk does not have."""
    return unicodedata.normalize("NFC", name)


def _names(folder: Path, split: str, whole: bool, annotations: dict[str, Path]) -> list[str]:
    lists = folder / "ImageSets" / "Main"
    if not lists.is_dir():
        return list(held_out(list(annotations), "all" if whole else split))
    known = sorted(path.stem for path in lists.glob("*.txt"))
    if known == [_UNSPLIT] and split != _UNSPLIT:
        return list(held_out(_listed(lists / f"{_UNSPLIT}.txt", annotations), "all" if whole else split))
    if split not in known:
        raise DataError(
            f"{folder} has no split {split!r}: there is no {lists / split}.txt. "
            f"Its splits: {', '.join(known) or 'none'}. "
            "Training does without one for validation by --validation-split none"
        )
    return _listed(lists / f"{split}.txt", annotations)


def _listed(path: Path, annotations: dict[str, Path]) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text: {error}. It should have the name of one image on each line") from error
    # VOC's own per-class lists have a second column, and some people's names have spaces.
    names = [_known_or_first(annotations, line.strip()) for line in lines if line.strip()]
    if not names:
        raise DataError(f"{path} is empty. It should have the name of one image on each line")
    return list(dict.fromkeys(names))


def _known_or_first(annotations: dict[str, Path], line: str) -> str:
    """The name that a line means: all of it if it has an annotation, else without its second column."""
    for name in (line, re.sub(r"\s+-?[01]$", "", line)):
        bare = _composed(name.removesuffix(Path(name).suffix) if is_image(Path(name)) else name)
        if bare in annotations:
            break
    return bare


def _read_annotation(
    place: VocPlace, name: str, annotations: dict[str, Path], pictures: ImageIndex, report: Report
) -> RawExample | None:
    path = annotations.get(name)
    if path is None:
        report.note("annotation file missing, image left out", name)
        return None
    try:
        root = ET.parse(path).getroot()  # noqa: S314 - expat bounds entity expansion; external ones are not fetched
    except (ET.ParseError, ValueError, LookupError):  # a LookupError is an unknown encoding
        report.note("annotation is not readable XML, image left out", path.name)
        return None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # a namespace says nothing here
    boxes = []
    for element in root.iter("object"):
        found = _boxes(element)
        if not found or None in found:
            report.note("object without a class name or four finite numbers, left out", path.name)
        boxes += [box for box in found if box is not None]
    image = _image_path(name, root, pictures) or place.images / f"{name}.jpg"
    return RawExample(path=image, stated_hw=_stated_hw(root), boxes=boxes)


def _image_path(name: str, root: ET.Element, pictures: ImageIndex) -> Path | None:
    """By the annotation's own name; <filename> may name another ending, and <path> is someone else's disk."""
    own = PurePosixPath(f"{name}.jpg")  # its ending counts for nothing, but a name may hold dots
    stated = PurePosixPath((root.findtext("filename") or "").strip().replace("\\", "/"))
    by_stated = pictures.named(stated) or pictures.with_stem(stated) if stated.name else None
    return pictures.with_stem(own) or by_stated or pictures.with_stem(own, any_case=True)


def _stated_hw(root: ET.Element) -> SizeHW | None:
    try:
        return int(root.findtext("size/height") or ""), int(root.findtext("size/width") or "")
    except ValueError:
        return None


def _boxes(element: ET.Element) -> list[RawBox | None]:
    """One for each bndbox of an object; None in place of one that is no box."""
    name = (element.findtext("name") or "").strip()
    return [_box(name, corners) for corners in element.findall("bndbox")]


def _box(name: str, corners: ET.Element) -> RawBox | None:
    try:
        x1, y1, x2, y2 = (float(corners.findtext(side) or "") for side in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        return None
    finite = all(abs(value) < float("inf") for value in (x1, y1, x2, y2))
    return RawBox(class_name=name, xyxy=(x1, y1, x2, y2)) if name and finite else None
