"""Which files of a folder are images, by their names alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from model.data.image_files import IMAGE_ENDINGS, files_below, is_image

IMAGE_SUFFIXES = frozenset(IMAGE_ENDINGS)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file to detect in, and the name of its drawn copy."""

    path: Path
    name: Path  # relative


def image_files(paths: Iterable[Path]) -> list[ImageFile]:
    """The files named, and those with an image's ending in the folders named and below, in order.

    In folders, what is hidden is left alone, as the "._name.jpg" that a Mac puts beside each file.

    Raises:
        FileNotFoundError: a path does not exist.
    """
    files = []
    for path in paths:
        if path.is_dir():
            below = [p for p in files_below(path) if is_image(p) and p.is_file()]
            files += [ImageFile(p, p.relative_to(path)) for p in below]
        elif path.exists():
            files.append(ImageFile(path, Path(path.name)))
        else:
            raise FileNotFoundError(f"no such file or folder: {path}")
    return files
