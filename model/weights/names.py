"""The names of weights and data on the command line. Needs no torch, so that a wrong path fails without delay."""

from __future__ import annotations

import os
from pathlib import Path

COCO_V1, BUNDLED, AUTO, RANDOM = "COCO_V1", "bundled", "auto", "random"
NONE = "none"  # weights to begin with: untrained
SYNTHETIC = "synthetic"
SUFFIXES = (".safetensors", ".pth", ".pt", ".frcnn")
TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".tar")  # of what torch.save wrote: Lightning's, and ".pth.tar"


def no_such_weights(weights: str | os.PathLike[str]) -> str:
    """The message for weights that are neither a name nor a file."""
    return (
        f"no such file of weights: {weights}. "
        f"Give {COCO_V1}, {BUNDLED}, or the path of a .pth, .safetensors or .frcnn file"
    )


def unreadable_weights(path: str | os.PathLike[str]) -> str | None:
    """The message for a file of weights that cannot be read; None if it can."""
    path = Path(path)
    try:
        if path.is_dir():
            return f"{path} is a folder, not a file of weights: Docker makes one where the file to mount is missing"
        if not path.is_file():
            return no_such_weights(path)
        allowed = os.access(path, os.R_OK)
    except PermissionError:  # of a folder above it
        allowed = False
    return None if allowed else f"the weights {path} cannot be read: user {os.geteuid()} has no right to (chmod a+r)"


def no_such_data(data: str) -> str:
    """The message for data that are neither a path nor `synthetic`."""
    return (
        f"no such data: {data}. Give a Pascal VOC folder (JPEGImages, Annotations, ImageSets/Main), a folder with COCO "
        f"JSON and images, or the word {SYNTHETIC}"
    )


def argument_error(*, weights: str | None = None, data: str | None = None) -> str | None:
    """The error of arguments that name nothing, found before torch is imported; None if all may be right."""
    names = {COCO_V1, "DEFAULT", BUNDLED, AUTO, RANDOM, NONE}
    if weights is not None and weights not in names and (message := unreadable_weights(weights)):
        return message
    if data is not None and data != SYNTHETIC and not Path(data).exists():
        return no_such_data(data)
    return None
