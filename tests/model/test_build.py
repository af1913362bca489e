"""The factory: what its arguments build, and how weights reach it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, resnet50
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

import model.weights.checkpoints
from model import fasterrcnn_resnet50_fpn
from model.architectures import ARCHITECTURES, FASTERRCNN_RESNET50_FPN, FASTERRCNN_RESNET50_FPN_V2, Architecture
from model.build import from_checkpoint, random_checkpoint, resolve_checkpoint
from model.resnet import FrozenBatchNorm2d
from model.roi_heads import FastRCNNPredictor
from model.weights.checkpoints import (
    Checkpoint,
    CheckpointInfo,
    WeightsError,
    coco_weights,
    save_checkpoint,
)
from model.weights.download import cached_path
from tests.support.oracle import StateDict, opinionated_state


def same_tensors(state: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in expected)


def norms(detector: nn.Module) -> list[nn.Module]:
    return [m for m in detector.modules() if isinstance(m, FrozenBatchNorm2d | nn.BatchNorm2d)]


@pytest.fixture(scope="module")
def frozen_state() -> StateDict:
    return {key: t for key, t in opinionated_state(11).items() if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_path_gives_the_files_detector(ending: str, tmp_path: Path, frozen_state: StateDict) -> None:
    path = tmp_path / f"mine{ending}"
    info = CheckpointInfo(norm_eps=1e-3, model_kwargs={"min_size": 320, "box_score_thresh": 0.25})
    save_checkpoint(path, frozen_state, info)

    obeyed = fasterrcnn_resnet50_fpn(weights=path)
    assert same_tensors(obeyed.state_dict(), frozen_state)
    assert obeyed.training
    assert obeyed.transform.min_size == (320,)
    assert obeyed.roi_heads.score_thresh == 0.25
    assert {type(norm) for norm in norms(obeyed)} == {FrozenBatchNorm2d}
    assert {norm.eps for norm in norms(obeyed)} == {1e-3}
    assert not obeyed.get_parameter("backbone.body.layer1.0.conv1.weight").requires_grad
    assert obeyed.get_parameter("backbone.body.layer2.0.conv1.weight").requires_grad

    overridden = fasterrcnn_resnet50_fpn(
        weights=str(path), num_classes=11, trainable_backbone_layers=0, min_size=96, box_nms_thresh=0.3
    )
    assert overridden.transform.min_size == (96,)
    assert overridden.roi_heads.score_thresh == 0.25
    assert overridden.roi_heads.nms_thresh == 0.3
    assert not any(parameter.requires_grad for parameter in overridden.get_submodule("backbone.body").parameters())

    with pytest.raises(ValueError, match="num_classes is 12, but the weights have 11"):
        fasterrcnn_resnet50_fpn(weights=path, num_classes=12)


def test_weights_that_do_not_fit_are_told(frozen_state: StateDict) -> None:
    lacking = {key: tensor for key, tensor in frozen_state.items() if key != "backbone.body.conv1.weight"}
    with pytest.raises(WeightsError, match=r"lacking\.pth does not fit.*\n  missing: backbone\.body\.conv1\.weight"):
        from_checkpoint(Checkpoint(name="lacking.pth", state_dict=lacking, info=CheckpointInfo()))
    odd = CheckpointInfo(model_kwargs={"colour": "red"})
    with pytest.raises(WeightsError, match=r"odd\.pth asks for a detector that cannot be built.*colour"):
        from_checkpoint(Checkpoint(name="odd.pth", state_dict=frozen_state, info=odd))


@pytest.mark.parametrize("weights", ["COCO_V1", FasterRCNN_ResNet50_FPN_Weights.COCO_V1, "DEFAULT"])
def test_the_official_name_gives_the_cached_file_with_its_epsilon(
    weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "official.pth"
    state = random_checkpoint().state_dict
    torch.save(state, path)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    entry = SimpleNamespace(url=f"https://weights.invalid/official-{digits}.pth", meta=coco_weights().meta)
    path.rename(cached_path(entry.url))
    monkeypatch.setattr(model.weights.checkpoints, "coco_weights", lambda *_: entry)
    detector = fasterrcnn_resnet50_fpn(weights=weights, progress=False)
    assert {norm.eps for norm in norms(detector)} == {0.0}
    assert same_tensors(detector.state_dict(), state)


@pytest.mark.parametrize("weights", ["file", "IMAGENET1K_V1", ResNet50_Weights.IMAGENET1K_V2])
def test_backbone_weights_fill_the_body_alone(weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = resnet50(weights=None)
    path = tmp_path / "resnet50.pth"
    torch.save(classifier.state_dict(), path)
    if weights == "file":
        weights = path
    else:  # as if it were in the cache
        monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
        name = weights if isinstance(weights, str) else weights.name
        cached = cached_path(ResNet50_Weights[name].url)
        cached.parent.mkdir()
        path.rename(cached)
    detector = fasterrcnn_resnet50_fpn(weights_backbone=weights, num_classes=3, progress=False)
    body = detector.get_submodule("backbone.body").state_dict()
    assert len(body) == 53 * 5
    assert all(torch.equal(tensor, classifier.state_dict()[key]) for key, tensor in body.items())
    assert {type(norm) for norm in norms(detector)} == {FrozenBatchNorm2d}
    assert {norm.eps for norm in norms(detector)} == {1e-5}
    trained = {
        key.split(".")[0] for key, p in detector.get_submodule("backbone.body").named_parameters() if p.requires_grad
    }
    assert trained == {"layer2", "layer3", "layer4"}


def test_without_weights_norms_are_live_and_layers_mean_nothing() -> None:
    with pytest.warns(UserWarning, match="means nothing without weights"):
        detector = fasterrcnn_resnet50_fpn(trainable_backbone_layers=2)
    assert {type(norm) for norm in norms(detector)} == {nn.BatchNorm2d}
    assert len(detector.get_parameter("roi_heads.box_predictor.cls_score.weight")) == 91


def test_a_predictor_of_ones_own_brings_the_classes() -> None:
    detector = fasterrcnn_resnet50_fpn(box_predictor=FastRCNNPredictor(1024, 7))
    assert len(detector.get_parameter("roi_heads.box_predictor.cls_score.weight")) == 7


def test_random_weights_go_by_their_seed_and_leave_the_dice_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = random_checkpoint()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same_tensors(random_checkpoint().state_dict, first.state_dict)
    assert not same_tensors(random_checkpoint(seed=1).state_dict, first.state_dict)
    assert first.name == "random"
    assert first.num_classes == 91


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, frozen_state: StateDict) -> dict[str, Path]:
    """A file of each architecture, by its name."""
    folder = tmp_path_factory.mktemp("files")
    states = {
        FASTERRCNN_RESNET50_FPN.name: frozen_state,
        FASTERRCNN_RESNET50_FPN_V2.name: random_checkpoint(architecture=FASTERRCNN_RESNET50_FPN_V2).state_dict,
    }
    for name, state in states.items():
        torch.save({"model": {f"module.{key}": tensor for key, tensor in state.items()}}, folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in states}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_file_tells_its_architecture_by_its_keys(name: str, files: dict[str, Path]) -> None:
    asked = ARCHITECTURES[name]
    for architecture in (None, asked):
        checkpoint = resolve_checkpoint(str(files[name]), architecture)
        assert checkpoint.architecture is asked
    other = next(one for one in ARCHITECTURES.values() if one is not asked)
    with pytest.raises(WeightsError, match=rf"{name}\.pth holds {name}, and the detector is {other.name}"):
        resolve_checkpoint(str(files[name]), other)
    has_bias = "backbone.fpn.inner_blocks.0.0.bias" in from_checkpoint(checkpoint).state_dict()
    assert has_bias is not asked.is_v2


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_random_weights_are_of_the_architecture_that_is_asked_for(architecture: Architecture) -> None:
    checkpoint = resolve_checkpoint("random", architecture)
    assert checkpoint.architecture is architecture
    from_checkpoint(checkpoint)


def test_the_bundled_weights_are_no_second_version() -> None:
    with pytest.raises(WeightsError, match="bundled holds fasterrcnn_resnet50_fpn, and"):
        resolve_checkpoint("bundled", FASTERRCNN_RESNET50_FPN_V2)


def test_another_detector_is_named_whichever_architecture_is_asked_for(tmp_path: Path) -> None:
    tensors = {"head.classification_head.conv.weight": torch.ones(3, 3), "backbone.body.conv1.weight": torch.ones(3, 3)}
    torch.save(tensors, tmp_path / "a.pth")
    for architecture in ARCHITECTURES.values():
        with pytest.raises(WeightsError, match="holds RetinaNet"):
            resolve_checkpoint(str(tmp_path / "a.pth"), architecture)


def test_a_detector_is_built_from_a_checkpoint_without_random_values() -> None:
    """All would be replaced, and they take half of the time."""
    checkpoint = random_checkpoint()
    before = torch.get_rng_state()
    built = from_checkpoint(checkpoint).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, checkpoint.state_dict[name]) for name, tensor in built.items())
