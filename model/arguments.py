"""What the command line calls weights and data. Without torch, which takes seconds: a wrong path is told at once."""

from __future__ import annotations

import os
from pathlib import Path

COCO_V1, BUNDLED, AUTO, RANDOM = "COCO_V1", "bundled", "auto", "random"
NONE = "none"  # weights to begin with: untrained
SYNTHETIC = "synthetic"
SUFFIXES = (".safetensors", ".pth", ".pt", ".frcnn")


def no_such_weights(weights: str | os.PathLike[str]) -> str:
    """What to tell somebody whose weights are neither a name nor a file."""
    return (
        f"no such file of weights: {weights}. "
        f"Give {COCO_V1}, {BUNDLED}, or the path of a .pth, .safetensors or .frcnn file"
    )


def no_such_data(data: str) -> str:
    """What to tell somebody whose data are neither a path nor `synthetic`."""
    return (
        f"no such data: {data}. Give a Pascal VOC folder (JPEGImages, Annotations, ImageSets/Main), a folder with COCO "
        f"JSON and images, or the word {SYNTHETIC}"
    )


def complaint(*, weights: str | None = None, data: str | None = None) -> str | None:
    """What to tell at once about the arguments that name nothing; None if all may be right."""
    names = {COCO_V1, "DEFAULT", BUNDLED, AUTO, RANDOM, NONE}
    if weights is not None and weights not in names and not Path(weights).is_file():
        return no_such_weights(weights)
    if data is not None and data != SYNTHETIC and not Path(data).exists():
        return no_such_data(data)
    return None
