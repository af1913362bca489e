"""Checkpoints as other programs write them."""

from __future__ import annotations

import argparse
import collections
import io
import math
import pathlib
import pickle
import re
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor
from torchvision.models import detection

from model.weights.checkpoints import Checkpoint, CheckpointInfo, WeightsError, load_strictly, read_checkpoint
from model.weights.foreign import other_architecture

CLS_SCORE = "roi_heads.box_predictor.cls_score.weight"
TENSORS = {"backbone.body.conv1.weight": torch.ones(2, 3), CLS_SCORE: torch.ones(4, 2)}


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in TENSORS.items()}


WRAPPED = {
    "torchvision's references": {
        "model": TENSORS,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(lr=0.02, data_path=pathlib.Path("data"), aspect=(1, 2)),
        "epoch": 3,
    },
    "the optimizer comes first": {"optimizer": {"exp_avg": torch.ones(2)}, "model_state_dict": TENSORS},
    "another name": {"weights": TENSORS, "epoch": 3},
    "one in another": {"checkpoint": {"model": TENSORS}},
    "NumPy's numbers": {"model": TENSORS, "best": np.float64(0.5), "step": np.int32(3), "when": np.bool_(True)},
    "other harmless values": {
        "model": TENSORS,
        "log": collections.defaultdict(list, {"loss": [1.0]}),
        "config": types.SimpleNamespace(a=1),
        "seen": {1, 2},
    },
    "DataParallel": prefixed("module."),
    "Lightning": {"state_dict": prefixed("model."), "hyper_parameters": {"lr": 0.1}},
    "torch.compile": prefixed("_orig_mod."),
    "Lightning of a compiled model": {"state_dict": prefixed("model._orig_mod.")},
    "a part compiled": {"backbone._orig_mod.body.conv1.weight": TENSORS["backbone.body.conv1.weight"]}
    | {CLS_SCORE: TENSORS[CLS_SCORE]},
    "FSDP": {"_fsdp_wrapped_module.backbone._checkpoint_wrapped_module.body.conv1.weight": torch.ones(2, 3)}
    | {f"_fsdp_wrapped_module.{CLS_SCORE}": TENSORS[CLS_SCORE]},
    "averaged": {"n_averaged": torch.tensor(3)} | prefixed("module."),
    "a prefix of one's own": prefixed("net.detector."),
    "beside a model without a predictor": {"model": {"fc.weight": torch.ones(2, 2)}, "model_ema": TENSORS},
}


@pytest.mark.parametrize("use_zip", [True, False])
@pytest.mark.parametrize("name", WRAPPED)
def test_the_tensors_are_found_under_their_own_names(tmp_path: Path, name: str, use_zip: bool) -> None:
    torch.save(WRAPPED[name], tmp_path / "their.pth", _use_new_zipfile_serialization=use_zip)
    found = read_checkpoint(tmp_path / "their.pth").state_dict
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in TENSORS.items())


@pytest.mark.parametrize("name", ["last.ckpt", "model_best.pth.tar", "their.pt", "THEIR.PTH"])
def test_torchs_files_have_several_endings(tmp_path: Path, name: str) -> None:
    torch.save(WRAPPED["Lightning"], tmp_path / name)
    assert read_checkpoint(tmp_path / name).state_dict.keys() == TENSORS.keys()


@pytest.mark.parametrize("module", [b"pathlib", b"pathlib._local"])  # up to Python 3.12, and of 3.13
def test_paths_may_be_beside_the_tensors_whichever_python_wrote_them(tmp_path: Path, module: bytes) -> None:
    path = tmp_path / "their.pth"
    torch.save({"model": TENSORS, "data": pathlib.PurePosixPath("data")}, path, _use_new_zipfile_serialization=False)
    written = re.sub(rb"cpathlib[._a-z]*\nPurePosixPath\n", b"c" + module + b"\nPurePosixPath\n", path.read_bytes())
    assert b"c" + module + b"\nPurePosixPath\n" in written
    path.write_bytes(written)
    assert read_checkpoint(path).state_dict.keys() == TENSORS.keys()


def test_a_prefix_is_taken_off_in_safetensors_too(tmp_path: Path) -> None:
    safetensors.torch.save_file(prefixed("module."), tmp_path / "their.safetensors")
    assert read_checkpoint(tmp_path / "their.safetensors").state_dict.keys() == TENSORS.keys()


def test_what_has_not_the_detectors_prefix_is_not_dropped(tmp_path: Path) -> None:
    torch.save(prefixed("model.") | {"criterion.weight": torch.ones(2)}, tmp_path / "their.pth")
    found = read_checkpoint(tmp_path / "their.pth")
    with pytest.raises(WeightsError, match=r"unexpected: criterion\.weight"):
        load_strictly(torch.nn.Module(), found.state_dict, source=found.name)


def test_two_detectors_in_one_dict_are_not_mixed(tmp_path: Path) -> None:
    torch.save(prefixed("teacher.") | prefixed("student."), tmp_path / "their.pth")
    with pytest.raises(WeightsError, match=r"no matrix roi_heads.*first keys: teacher\.backbone"):
        _ = read_checkpoint(tmp_path / "their.pth").num_classes


def test_the_objects_that_keep_a_file_from_being_read_are_named(tmp_path: Path) -> None:
    torch.save({"model": TENSORS, "module": torch.nn.Linear(1, 1)}, tmp_path / "their.pth")
    with pytest.raises(WeightsError, match=r"holds more than tensors \(.*torch\.nn\.modules\.linear\.Linear.*run code"):
        read_checkpoint(tmp_path / "their.pth")


def torchscript() -> bytes:
    """As `torch.jit.save` lays it out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl"):
            archive.writestr(f"model/{name}", b"")
    return buffer.getvalue()


def saved_by_torch(**options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(TENSORS, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.pth", b"", "is empty"),
        ("a.safetensors", b"", "is empty"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        ("a.pth", b"<!DOCTYPE html><title>Not found</title>", "web page"),
        ("a.pth", pickle.dumps({"model": [1]}), "pickle.*can run code"),
        ("a.pt", torchscript(), "TorchScript"),
        ("a.pth", safetensors.torch.save(TENSORS), r"should end in \.safetensors"),
        ("a.safetensors", saved_by_torch(), r"should end in \.pth"),
        ("a.safetensors", saved_by_torch(_use_new_zipfile_serialization=False), r"should end in \.pth"),
    ],
)
def test_files_of_another_kind_than_their_name_are_told(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=told):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "told"), [(b"no weights at all", "begins like neither"), (saved_by_torch()[:-100], "is broken")]
)
def test_nobody_is_told_to_run_a_files_code(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=told) as caught:
        read_checkpoint(tmp_path / "a.pth")
    assert "weights_only" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("change", [Tensor.to_sparse, lambda tensor: tensor.to("meta"), lambda tensor: tensor + 1j])
def test_tensors_that_are_not_dense_are_rejected_by_name(tmp_path: Path, change: Callable[[Tensor], Tensor]) -> None:
    bad = TENSORS | {"backbone.body.conv1.weight": change(TENSORS["backbone.body.conv1.weight"])}
    torch.save(bad, tmp_path / "their.pth")
    with pytest.raises(WeightsError, match=r"conv1\.weight is sparse, quantized, complex or without values"):
        read_checkpoint(tmp_path / "their.pth")


def test_messages_hold_no_colours_of_a_terminal(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), tmp_path / "their.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(tmp_path / "their.pth")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_no_numbers_are_rejected_by_the_tensors_name(
    tmp_path: Path, value: float, ending: str, dtype: torch.dtype
) -> None:
    bad = {key: tensor.to(dtype, copy=True) for key, tensor in TENSORS.items()}
    bad["backbone.body.conv1.weight"][1, 2] = value
    path = tmp_path / f"diverged{ending}"
    torch.save(bad, path) if ending == ".pth" else safetensors.torch.save_file(bad, path)
    with pytest.raises(WeightsError, match=r"diverged.*backbone\.body\.conv1\.weight holds 1 of 6 values that are NaN"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("key", "tensor", "why"),
    [
        ("backbone.body.conv1.weight", torch.zeros(2, 3), "holds zeros alone"),
        ("backbone.body.bn1.running_var", torch.tensor([1.0, -0.5]), "holds negative variances"),
        ("backbone.body.bn1.bias", torch.tensor([1e300], dtype=torch.float64), "1 of 1 values"),
    ],
)
def test_weights_with_which_nothing_can_be_found_are_rejected(
    tmp_path: Path, key: str, tensor: Tensor, why: str
) -> None:
    torch.save(TENSORS | {key: tensor}, tmp_path / "their.pth")
    with pytest.raises(WeightsError, match=f"{key} {why}" if "values" not in why else why):
        read_checkpoint(tmp_path / "their.pth")


def test_biases_and_norms_may_be_zero(tmp_path: Path) -> None:
    zeros = {"backbone.body.bn1.weight": torch.zeros(2), "backbone.body.bn1.bias": torch.zeros(2)}
    torch.save(TENSORS | zeros, tmp_path / "their.pth")
    assert len(read_checkpoint(tmp_path / "their.pth").state_dict) == 4


def built(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        builder = getattr(detection, name, None) or getattr(torchvision.models, name)
        arguments = {"weights_backbone": None} if hasattr(detection, name) else {}
        return dict(builder(weights=None, **arguments).state_dict())


def resnet_fpn(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        backbone = detection.backbone_utils.resnet_fpn_backbone(backbone_name=name, weights=None)
        return dict(detection.FasterRCNN(backbone, 3).state_dict())


OTHERS = {
    "fasterrcnn_resnet50_fpn_v2": (built, "fasterrcnn_resnet50_fpn_v2"),
    "fasterrcnn_mobilenet_v3_large_fpn": (built, "MobileNet"),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (built, "MobileNet"),
    "maskrcnn_resnet50_fpn": (built, "Mask R-CNN"),
    "maskrcnn_resnet50_fpn_v2": (built, "Mask R-CNN"),
    "keypointrcnn_resnet50_fpn": (built, "Keypoint R-CNN"),
    "retinanet_resnet50_fpn": (built, "RetinaNet"),
    "retinanet_resnet50_fpn_v2": (built, "RetinaNet"),
    "fcos_resnet50_fpn": (built, "FCOS"),
    "ssd300_vgg16": (built, "SSD"),
    "ssdlite320_mobilenet_v3_large": (built, "SSD"),
    "resnet50": (built, "classifies whole images"),
    "resnet101": (resnet_fpn, "ResNet-101"),
    "resnet18": (resnet_fpn, "ResNet-18"),
    "resnet34": (resnet_fpn, "ResNet-18"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_torchvisions_other_models_are_named_in_a_few_lines(name: str) -> None:
    build, told = OTHERS[name]
    state = build(name)
    ours = built("fasterrcnn_resnet50_fpn")
    with torch.device("meta"):
        model = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    assert other_architecture(ours) is None
    with pytest.raises(WeightsError, match=told) as caught:
        load_strictly(model, state, source="their.pth")
    assert len(str(caught.value).splitlines()) <= 2
    if CLS_SCORE not in state:
        with pytest.raises(WeightsError, match=told):
            _ = Checkpoint(name="their.pth", state_dict=dict(state), info=CheckpointInfo()).num_classes


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("proposal_generator.rpn_head.conv.weight", "detectron2"),
        ("backbone.bottom_up.stem.conv1.weight", "detectron2"),
        ("roi_head.bbox_head.fc_cls.weight", "MMDetection"),
        ("model.0.conv.weight", "YOLO"),
        ("transformer.encoder.layers.0.linear1.weight", "DETR"),
    ],
)
def test_models_of_other_libraries_are_named(key: str, told: str) -> None:
    assert told in (other_architecture([key, CLS_SCORE]) or "")
