"""The state of an unfinished run on disk, from which `--resume` continues to the same numbers."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from model.data.samples import DataError
from model.weights.whole_files import replacing, write_by_torch

LAST_NAME = "last.pth"
_KEYS = frozenset(
    {"iteration", "model", "optimizer", "average", "average_updates", "best_ap", "judged"}
    | {"info", "begin", "settings", "parts", "data", "validation"}
)
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError)


def save_snapshot(folder: Path, state: Mapping[str, Any]) -> None:
    """Write all of it, or leave the one before.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / LAST_NAME
    partial = path.with_name(f"{LAST_NAME}.partial")
    with replacing(path, partial):
        write_by_torch(state, partial)


def finished_iterations(folder: Path) -> int:
    """How far the run in this folder came; 0 if there is none, or none that can be read."""
    path = folder / LAST_NAME
    if not path.is_file():
        return 0
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["iteration"])
    except _UNREADABLE:
        return 0


def read_snapshot(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """What `save_snapshot` wrote last; None if there is nothing.

    Raises:
        DataError: the file is broken, or of another version.
    """
    path = folder / LAST_NAME
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except _UNREADABLE as error:
        # torch's own message is ten lines, and advises to let the file run code.
        raise DataError(f"{path} is broken, so the run cannot be resumed. Train without --resume") from error
    if not isinstance(state, dict) or not state.keys() >= _KEYS:
        raise DataError(
            f"{path} is not the state of a run of this version, so it cannot be resumed. Train without --resume, into "
            "another folder"
        )
    return state
