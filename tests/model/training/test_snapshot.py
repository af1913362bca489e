from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model.data.samples import DataError
from model.training.snapshot import LAST_NAME, finished_iterations, read_snapshot, save_snapshot

CPU = torch.device("cpu")
STATE: dict[str, Any] = {
    "iteration": 7, "model": {"weight": torch.arange(4.0)}, "optimizer": {}, "average": {}, "average_updates": 7,
    "best_ap": 0.5, "judged": True, "info": {}, "begin": None, "settings": {}, "parts": 1, "data": "d",
    "validation": None,
}  # fmt: skip


def test_what_is_saved_is_read_back_from_one_file(tmp_path: Path) -> None:
    assert (read_snapshot(tmp_path, CPU), finished_iterations(tmp_path)) == (None, 0)
    save_snapshot(tmp_path, STATE)
    save_snapshot(tmp_path, STATE | {"iteration": 8})
    state = read_snapshot(tmp_path, CPU)
    assert state is not None
    assert state["model"]["weight"].equal(torch.arange(4.0))
    assert state["iteration"] == finished_iterations(tmp_path) == 8
    assert [path.name for path in tmp_path.iterdir()] == [LAST_NAME]


def test_a_failed_save_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_snapshot(tmp_path, STATE)

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        save_snapshot(tmp_path, STATE | {"iteration": 8})
    assert finished_iterations(tmp_path) == 7
    assert [path.name for path in tmp_path.iterdir()] == [LAST_NAME]


@pytest.mark.parametrize("content", [b"", b"no state at all", None])
def test_a_broken_file_says_what_to_do(tmp_path: Path, content: bytes | None) -> None:
    save_snapshot(tmp_path, STATE)
    path = tmp_path / LAST_NAME
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(DataError, match=r"cannot be resumed.*Train without --resume"):
        read_snapshot(tmp_path, CPU)
    assert finished_iterations(tmp_path) == 0


@pytest.mark.parametrize("state", [{"iteration": 3}, [1, 2]])
def test_a_state_of_another_version_is_told(tmp_path: Path, state: object) -> None:
    torch.save(state, tmp_path / LAST_NAME)
    with pytest.raises(DataError, match="not the state of a run of this version"):
        read_snapshot(tmp_path, CPU)
