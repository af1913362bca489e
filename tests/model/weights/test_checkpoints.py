"""Files of weights: what is read, what is written, and what is rejected."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import model.weights.checkpoints
from model.weights.checkpoints import (
    Checkpoint,
    CheckpointInfo,
    WeightsError,
    coco_categories,
    coco_weights,
    load_strictly,
    official_weights,
    read_checkpoint,
    read_coco,
    save_checkpoint,
)
from model.weights.files import read_file
from tests.support.weight_files import CLS_SCORE, INFO, TENSORS, assert_same_tensors


@pytest.mark.parametrize("ending", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("info", [INFO, CheckpointInfo()], ids=["with info", "without"])
def test_what_is_saved_is_read_back(tmp_path: Path, ending: str, info: CheckpointInfo) -> None:
    path = tmp_path / f"mine{ending}"
    save_checkpoint(path, TENSORS, info)
    save_checkpoint(path, TENSORS, info)  # and again, over the first
    checkpoint = read_checkpoint(path)
    assert checkpoint.name == path.name
    assert checkpoint.info == info
    assert_same_tensors(checkpoint.state_dict, TENSORS)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("wrapped", [dict, lambda t: {"model": t, "epoch": 3}, lambda t: {"state_dict": t}])
def test_plain_and_wrapped_state_dicts_are_read(
    tmp_path: Path, wrapped: Callable[[dict[str, Tensor]], dict[str, Any]]
) -> None:
    old = {"rpn.head.conv.weight": TENSORS["rpn.head.conv.0.0.weight"], CLS_SCORE: TENSORS[CLS_SCORE]}
    torch.save(wrapped(old), tmp_path / "their.pth")
    checkpoint = read_checkpoint(tmp_path / "their.pth")
    assert_same_tensors(checkpoint.state_dict, TENSORS)
    assert checkpoint.info == CheckpointInfo()
    assert checkpoint.num_classes == 4


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".frcnn"])
def test_a_file_that_may_not_be_read_is_said_to_be_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    path = tmp_path / f"w{ending}"
    path.touch()
    monkeypatch.setattr("os.access", lambda asked, _: Path(asked) != path)  # root may read all
    with pytest.raises(WeightsError, match=rf"w\{ending} cannot be read: user \d+ has no right to"):
        read_checkpoint(path)
    monkeypatch.setattr(model.weights.checkpoints, "fetch_coco", lambda *_, **__: path)
    with pytest.raises(WeightsError, match="has no right to"):
        read_coco()


def checkpoint_of(num_classes: int, info: CheckpointInfo | None = None) -> Checkpoint:
    return Checkpoint(name="x.pth", state_dict={CLS_SCORE: torch.zeros(num_classes, 2)}, info=info or CheckpointInfo())


def test_class_names_are_the_files_own_or_cocos_or_stand_ins() -> None:
    assert checkpoint_of(4, INFO).categories.names == INFO.class_names
    assert checkpoint_of(91).categories == coco_categories()
    assert checkpoint_of(3).categories.names == ("__background__", "class 1", "class 2")


def test_classes_can_be_named() -> None:
    checkpoint = checkpoint_of(3)
    assert checkpoint.named(["cat", "dog"]).categories.objects() == {1: "cat", 2: "dog"}
    assert checkpoint.named(()) is checkpoint
    with pytest.raises(WeightsError, match=r"x\.pth has 2 classes besides the background, but 1 names are given: cat"):
        checkpoint.named(["cat"])


def test_as_many_class_names_as_classes_are_needed() -> None:
    with pytest.raises(WeightsError, match=r"x\.pth names 4 classes but has 5"):
        _ = checkpoint_of(5, INFO).categories


def test_other_models_are_told_by_their_keys() -> None:
    with pytest.raises(WeightsError, match=r"x is not a Faster R-CNN checkpoint.* first keys: fc\.weight"):
        _ = Checkpoint(name="x", state_dict={"fc.weight": torch.ones(1)}, info=CheckpointInfo()).num_classes


def test_official_entries() -> None:
    assert official_weights("fasterrcnn_resnet50_fpn", "DEFAULT") == coco_weights()
    assert coco_weights().url.endswith("-258fb6c6.pth")
    assert len(coco_categories()) == 91
    assert coco_categories().name(1) == "person"
    with pytest.raises(WeightsError, match="published weights COCO_V1, DEFAULT, not 'COCO_V9'"):
        official_weights("fasterrcnn_resnet50_fpn", "COCO_V9")


def test_the_official_file_is_known_by_its_hash_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "renamed.pth"
    torch.save(TENSORS, path)
    assert read_checkpoint(path).info.norm_eps == 1e-5
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    entry = SimpleNamespace(url=f"https://weights.invalid/coco-{digits}.pth", meta=coco_weights().meta)
    monkeypatch.setattr(model.weights.checkpoints, "coco_weights", lambda *_: entry)
    checkpoint = read_checkpoint(path)
    assert checkpoint.name == "COCO_V1"
    assert checkpoint.info == CheckpointInfo(class_names=tuple(entry.meta["categories"]), norm_eps=0.0)


def test_a_version_is_the_start_of_the_files_hash(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, TENSORS, CheckpointInfo())
    assert read_checkpoint(path).version == hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def test_weights_without_a_file_have_a_version_of_their_values() -> None:
    def version(tensors: dict[str, torch.Tensor]) -> str:
        return Checkpoint(name="random", state_dict=tensors, info=CheckpointInfo()).version

    tensors = {"a": torch.zeros(2, 3), "n": torch.tensor(1), "h": torch.ones(2, dtype=torch.bfloat16)}
    assert version(tensors) == version({key: tensor.clone() for key, tensor in tensors.items()})
    others = ({"a": torch.ones(2, 3)}, {"a": torch.zeros(6)}, {"b": torch.zeros(1)})
    assert len({version(tensors), *(version(tensors | other) for other in others)}) == 4
    assert len(version(tensors)) == 12


def test_a_file_that_is_replaced_while_it_is_read_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save(TENSORS, path)
    torch.save(TENSORS, other)

    def read_and_replace(asked: Path) -> Any:
        other.replace(asked)
        return read_file(asked)

    monkeypatch.setattr(model.weights.checkpoints, "read_file", read_and_replace)
    with pytest.raises(WeightsError, match="changed while it was read"):
        read_checkpoint(path)


def test_load_strictly_lets_batch_counters_come_and_go() -> None:
    norm = torch.nn.BatchNorm2d(2)
    state = {key: torch.full_like(tensor, 3) for key, tensor in norm.state_dict().items()}
    load_strictly(norm, {key: state[key] for key in state if key != "num_batches_tracked"}, source="x")
    load_strictly(torch.nn.Sequential(norm), {f"0.{key}": tensor for key, tensor in state.items()}, source="x")
    assert norm.num_batches_tracked == 3
    plain = torch.nn.Linear(1, 1)
    load_strictly(plain, plain.state_dict() | {"bn.num_batches_tracked": torch.tensor(1)}, source="x")


def test_a_cached_file_that_is_not_the_official_one_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"
    torch.save({"weight": torch.zeros(2)}, path)
    monkeypatch.setattr(model.weights.checkpoints, "fetch_coco", lambda *_, **__: path)
    with pytest.raises(WeightsError, match="is not the official file, or is damaged: delete it"):
        read_coco()
