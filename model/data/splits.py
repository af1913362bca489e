"""What the parts of data for training, validation and testing are called."""

from __future__ import annotations

from pathlib import PurePath

_OTHER_NAMES = {"val": ("val", "valid", "validation"), "train": ("train", "training"), "test": ("test", "testing")}
SPLITS = tuple(_OTHER_NAMES)


def split_names(split: str) -> tuple[str, ...]:
    """What a split is called, here and by others."""
    return _OTHER_NAMES.get(split, (split,))


def split_of(folder: PurePath) -> str | None:
    """The split that a folder, or one above it, is named for; None if there is none.

    Args:
        folder: relative to the folder that was named.
    """
    for part in folder.parts:
        for split, names in _OTHER_NAMES.items():
            if part.lower() in names:
                return split
    return None
