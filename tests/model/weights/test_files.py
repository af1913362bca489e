from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from model.build import from_checkpoint
from model.weights.checkpoints import (
    CheckpointInfo,
    WeightsError,
    read_checkpoint,
    save_checkpoint,
)
from tests.support.weight_files import INFO, TENSORS, assert_same_tensors


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_tensors_that_are_views_are_saved(tmp_path: Path, ending: str) -> None:
    whole = torch.arange(6.0).reshape(2, 3).requires_grad_()
    save_checkpoint(tmp_path / f"mine{ending}", {"view": whole.t()}, CheckpointInfo())
    assert_same_tensors(read_checkpoint(tmp_path / f"mine{ending}").state_dict, {"view": whole.detach().t()})


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.pth"
    save_checkpoint(path, TENSORS, INFO)
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {}, INFO)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.pth"]
    assert_same_tensors(read_checkpoint(path).state_dict, TENSORS)


def test_plain_safetensors_are_read(tmp_path: Path) -> None:
    safetensors.torch.save_file(TENSORS, tmp_path / "their.safetensors")
    checkpoint = read_checkpoint(tmp_path / "their.safetensors")
    assert_same_tensors(checkpoint.state_dict, TENSORS)
    assert checkpoint.info == CheckpointInfo()


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.trace), "w"))


def cut(path: Path, end: int, *, use_zip: bool) -> None:
    torch.save(TENSORS, path, _use_new_zipfile_serialization=use_zip)
    path.write_bytes(path.read_bytes()[:end])


BROKEN: dict[str, Callable[[Path], object]] = {
    "empty.pth": lambda path: path.write_bytes(b""),
    "text.pth": lambda path: path.write_text("not weights at all\n"),
    "zeros.pth": lambda path: path.write_bytes(bytes(1000)),
    "cut.pth": lambda path: cut(path, -200, use_zip=True),
    "cut-legacy.pth": lambda path: cut(path, -20, use_zip=False),
    "short-legacy.pth": lambda path: cut(path, 40, use_zip=False),
    "plain-pickle.pth": lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=2)),
    "list.pth": lambda path: torch.save([torch.ones(1)], path),
    "nothing.pth": lambda path: torch.save({}, path),
    "nested.pth": lambda path: torch.save({"weights": {"a": [torch.ones(1)]}}, path),
    "numbers.pth": lambda path: torch.save({"model": {"a": 3}}, path),
    "whole-module.pth": lambda path: torch.save(torch.nn.Linear(1, 1), path),
    "bad-info.pth": lambda path: torch.save({"model": TENSORS, "faster_rcnn": {"colour": "red"}}, path),
    "info-list.pth": lambda path: torch.save({"model": TENSORS, "faster_rcnn": [1]}, path),
    "empty.safetensors": lambda path: path.write_bytes(b""),
    "text.safetensors": lambda path: path.write_text("not weights at all\n"),
    "cut.safetensors": lambda path: path.write_bytes(safetensors.torch.save(TENSORS)[:-3]),
    "bad-info.safetensors": lambda path: safetensors.torch.save_file(TENSORS, path, {"faster_rcnn": "{"}),
    "odd-info.safetensors": lambda path: safetensors.torch.save_file(TENSORS, path, {"faster_rcnn": json.dumps([1])}),
    "weights.onnx": lambda path: path.write_bytes(b"x"),
    "missing.pth": lambda path: None,
    "folder.pth": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_rejected_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    BROKEN[name](path)
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"hello", b"not weights at all\n", bytes(1000)])
def test_what_torch_never_wrote_is_told_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="neither of the files that torch"):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("use_zip", [True, False])
def test_however_a_file_is_damaged_it_is_read_or_rejected(tmp_path: Path, use_zip: bool) -> None:
    path = tmp_path / "damaged.pth"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=use_zip)
    whole = path.read_bytes()
    dice = random.Random(0)
    rejected = 0
    for _ in range(150):
        damaged = bytearray(whole[: dice.choice([len(whole), dice.randrange(len(whole))])])
        for place in dice.sample(range(min(len(damaged), 800)), k=min(len(damaged), dice.randrange(4))):
            damaged[place] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except WeightsError:
            rejected += 1
    assert rejected > 50


def test_legacy_files_are_read(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same_tensors(read_checkpoint(tmp_path / "old.pth").state_dict, TENSORS)


@pytest.mark.parametrize("use_zip", [True, False])
def test_a_pickle_that_would_run_code_is_not_run(tmp_path: Path, use_zip: bool) -> None:
    trace = tmp_path / "trace"
    torch.save({"model": Malicious(trace)}, tmp_path / "evil.pth", _use_new_zipfile_serialization=use_zip)
    with pytest.raises(WeightsError, match="can run code"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not trace.exists()


def test_a_folder_in_a_files_place_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is a folder, not a file of weights"):
        read_checkpoint(tmp_path)


def test_saving_under_another_ending_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="end in none of"):
        save_checkpoint(tmp_path / "mine.onnx", TENSORS, INFO)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "model_kwargs",
    [
        {"box_roi_pool": 3},
        {"backbone": None},
        {"min_size": 0},
        {"box_vote_thresh": "x"},
        {"image_std": [0.2, 0.0, 0.2]},
        {"x": 1},
    ],
)
def test_model_arguments_that_no_file_may_set_are_rejected(tmp_path: Path, model_kwargs: dict[str, Any]) -> None:
    path = tmp_path / "crafted.pth"
    tensors = {"roi_heads.box_predictor.cls_score.weight": torch.zeros(3, 4)}
    save_checkpoint(path, tensors, CheckpointInfo(model_kwargs=model_kwargs))
    with pytest.raises(WeightsError):
        from_checkpoint(read_checkpoint(path))


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    synced = []
    monkeypatch.setattr("os.fsync", lambda _: synced.append(path.exists()))
    save_checkpoint(path, {"a": torch.zeros(2)}, CheckpointInfo())
    assert synced == [False]
    assert path.is_file()
