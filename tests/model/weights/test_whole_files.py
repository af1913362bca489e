from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from model.weights.whole_files import replacing, write_by_torch

CONTENT = {str(number): torch.ones(1000) for number in range(20)}


class Failing:
    """A file whose writes fail after some, as where the disk is full or Ctrl-C comes."""

    def __init__(self, file: Any, error: BaseException) -> None:
        self._file, self._error, self._left = file, error, 10

    def __enter__(self) -> Failing:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        self._left -= 1
        if self._left == 0:
            raise self._error
        return int(self._file.write(data))

    def flush(self) -> None:
        self._file.flush()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_ends_a_save_in_the_middle_is_told_and_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """torch raises a RuntimeError of a position in the archive in its place."""
    path, partial = tmp_path / "last.pth", tmp_path / "last.pth.partial"
    path.write_bytes(b"before")
    opened = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, *mode: Failing(opened(self, *mode), error))
        with pytest.raises(type(error)) as raised, replacing(path, partial):
            write_by_torch(CONTENT, partial)
    assert raised.value is error
    assert str(error) == (f"[Errno 28] No space left on device: '{path}'" if isinstance(error, OSError) else "")
    assert [file.name for file in tmp_path.iterdir()] == ["last.pth"]
    assert path.read_bytes() == b"before"


def test_what_torch_itself_cannot_write_is_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not serializable"):
        write_by_torch({"a": Unserializable()}, tmp_path / "file")


class Unserializable:
    def __reduce__(self) -> str:
        raise RuntimeError("not serializable")


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path, partial = tmp_path / "last.pth", tmp_path / "last.pth.partial"
    path.write_bytes(b"before")
    with replacing(path, partial):
        write_by_torch(CONTENT, partial)
        assert path.read_bytes() == b"before"
    assert torch.load(path, weights_only=True).keys() == CONTENT.keys()
    assert not partial.exists()
