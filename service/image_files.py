"""Which files of a folder are images, by their names alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".mpo"})


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file to look at, and the name under which its drawn copy is kept."""

    path: Path
    name: Path  # relative


def image_files(paths: Iterable[Path]) -> list[ImageFile]:
    """The files named, and those with an image's ending in the folders named and below, in order.

    Raises:
        FileNotFoundError: a path does not exist.
    """
    files = []
    for path in paths:
        if path.is_dir():
            below = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            files += [ImageFile(p, p.relative_to(path)) for p in below]
        elif path.exists():
            files.append(ImageFile(path, Path(path.name)))
        else:
            raise FileNotFoundError(f"no such file or folder: {path}")
    return files
