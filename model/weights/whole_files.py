"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def replacing(path: Path, partial: Path) -> Iterator[None]:
    """Have `partial` written within; it then takes the place of `path`.

    A reader never sees half a file, even after a power cut. What fails leaves the file before, and no `partial`.

    Raises:
        OSError: it cannot be written; with the file's name.
    """
    try:
        yield
        put_in_place(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def put_in_place(partial: Path, path: Path) -> None:
    """Give a file that is whole its name.

    Raises:
        OSError: the disk is full or broken, or the name cannot be given; `partial` stays.
    """
    with partial.open("rb+") as file:  # or a power cut could leave the new name on an empty file
        os.fsync(file.fileno())
    partial.replace(path)


def write_by_torch(content: Mapping[str, Any], path: Path) -> None:
    """Write a file by `torch.save`.

    Raises:
        OSError, KeyboardInterrupt: what ended it in the middle. torch then ends the archive, fails in that, and raises
            a RuntimeError in its place.
    """
    try:
        with path.open("wb") as file:
            torch.save(dict(content), file)
    except RuntimeError as error:
        first: BaseException | None = error
        while first is not None and not isinstance(first, OSError | KeyboardInterrupt):
            first = first.__context__
        if first is None:
            raise
        raise first from None
