"""Pascal VOC folders in which everything can be odd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# An object of an annotation: its class name and xmin, ymin, xmax, ymax.
VocObject = tuple[str, float | str, float | str, float | str, float | str]


def write_voc(
    folder: Path,
    objects: Mapping[str, Sequence[VocObject]],
    *,
    splits: Mapping[str, Sequence[str]] | None = None,
    stated_hw: tuple[int, int] = (80, 100),
) -> Path:
    """Write grey pictures, 100 wide and 80 high, with their annotations and lists; return the folder."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for name, listed in objects.items():
        pixels = np.full((80, 100, 3), 128, np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg")
        (folder / "Annotations" / f"{name}.xml").write_text(_annotation(name, listed, stated_hw))
    for split, names in (splits or {"train": list(objects), "val": list(objects)}).items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
    return folder


def _annotation(name: str, objects: Sequence[VocObject], stated_hw: tuple[int, int]) -> str:
    boxes = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object>"
        for label, x1, y1, x2, y2 in objects
    )
    height, width = stated_hw
    return (
        f"<annotation><filename>{name}.jpg</filename><path>C:\\elsewhere\\{name}.jpg</path>"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>{boxes}</annotation>"
    )
