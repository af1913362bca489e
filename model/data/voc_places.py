"""Where Pascal VOC's annotations and images lie: as in the challenge, or as people pack them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from model.data.image_files import files_below, is_image
from model.data.samples import DataError
from model.data.splits import split_names, split_of

_ANNOTATIONS = "annotations"
_IMAGES = ("jpegimages", "images", "image")  # in the order in which they are preferred


class VocPlace(NamedTuple):
    """One set of annotations.

    Attributes:
        folder: what holds both, and the lists in ImageSets if there are any.
        annotations: the folder of the XML files.
        images: the folder of the images.
        is_of_split: it holds the split that was asked for and nothing else.
    """

    folder: Path
    annotations: Path
    images: Path
    is_of_split: bool


def is_voc(path: Path) -> bool:
    """Whether annotations in XML lie in the folder or below."""
    return bool(_folders_of_annotations(path))


def find_voc(path: Path, split: str) -> VocPlace:
    """The annotations of a split: `Annotations` beside `JPEGImages` or `images`, or XML files beside their images.

    They lie in the folder or below, as in `VOCdevkit/VOC2012`; each split may have a folder. Names of folders may have
    any case.

    Raises:
        DataError: there are none, or several that it might be.
    """
    found = _folders_of_annotations(path)
    splits = {annotations: split_of(folder.relative_to(path)) for annotations, folder in found.items()}
    of_split = [annotations for annotations in found if splits[annotations] == split]
    matching = of_split or [annotations for annotations in found if splits[annotations] is None]
    if len(matching) != 1:
        there = ", ".join(str(annotations.relative_to(path)) for annotations in found) or "none"
        raise DataError(
            f"{path} has {len(matching) or 'no'} folders of annotations (.xml) that may be the split {split!r}. "
            f"It has {there}: name the folder of one data set"
        )
    annotations = matching[0]
    folder = found[annotations]
    below = [child for child in annotations.iterdir() if child.is_dir() and child.name.lower() in split_names(split)]
    return VocPlace(
        folder=folder,
        annotations=below[0] if below else annotations,
        images=folder if annotations == folder else _images(folder),
        is_of_split=bool(of_split or below),
    )


def _folders_of_annotations(path: Path) -> dict[Path, Path]:
    """Each folder of annotations, and the folder that holds it and its images."""
    files = files_below(path)
    images = {file.with_suffix("") for file in files if is_image(file)}
    found: dict[Path, Path] = {}
    for file in files:
        if file.suffix.lower() != ".xml":
            continue
        above = [path / parent for parent in file.relative_to(path).parents if parent.name.lower() == _ANNOTATIONS]
        if above:
            found[above[-1]] = above[-1].parent
        elif file.with_suffix("") in images:
            found[file.parent] = file.parent
    return found


def _images(folder: Path) -> Path:
    children = {child.name.lower(): child for child in folder.iterdir() if child.is_dir()}
    return next((children[name] for name in _IMAGES if name in children), folder)
