"""Checkpoints as other programs write them: wrappers around the tensors, prefixes of their names, other detectors.

Everything here works on names and values alone. `files` reads the files.
"""

from __future__ import annotations

import argparse
import builtins
import math
import pathlib
import re
import types
import zipfile
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

PREDICTOR_KEY = "roi_heads.box_predictor.cls_score.weight"
_LIKELY_WRAPPERS = ("model", "state_dict", "model_state_dict")
_MOST_WRAPPERS = 3  # one in another
# Components that torch.compile, DataParallel and FSDP put into names, in any place.
_WRAPPING_COMPONENTS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_MOST_SHOWN = 12


def _plain_dict(_factory: Any = None) -> dict[Any, Any]:
    """In place of a defaultdict, into which torch puts no items."""
    return {}


_PATHLIB = ("pathlib", "pathlib._local")
# What training scripts keep beside the tensors. To build one of these runs no code of the file's choosing.
# torchvision's own references keep an argparse.Namespace; others keep paths, NumPy's numbers, dicts with a default.
HARMLESS_GLOBALS: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    (_plain_dict, "collections.defaultdict"),
    *(getattr(builtins, name) for name in ("list", "dict", "tuple", "set", "int", "float", "bool", "str", "complex")),
    # Python 3.13 writes them under another module's name.
    *((pathlib.PurePosixPath, f"{module}.{name}") for module in _PATHLIB for name in ("PosixPath", "PurePosixPath")),
    *(
        (pathlib.PureWindowsPath, f"{module}.{name}")
        for module in _PATHLIB
        for name in ("WindowsPath", "PureWindowsPath")
    ),
    np.dtype,
    *(type(np.dtype(kind)) for kind in "?bhilqBHILQefd"),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]

_WITHOUT_PICKLE = "Where it was made, save model.state_dict() by torch.save instead"
# How a file begins, and what it is.
_BEGINNINGS = (
    (b"version https://git-lfs", "is a pointer of Git LFS and not the file itself: fetch that by git lfs pull"),
    (b"<", "is a web page: the download went wrong"),
    (b"\x89HDF", f"is HDF5, as Keras writes it. {_WITHOUT_PICKLE}"),
)
_TORCHS_ZIP, _TORCHS_OLD = b"PK\3\4", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# name of a detector, a pattern that one of its tensors' names matches; the first that fits counts.
_ARCHITECTURES = (
    ("Mask R-CNN", r"^roi_heads\.mask_(head|predictor)\."),
    ("Keypoint R-CNN", r"^roi_heads\.keypoint_(head|predictor)\."),
    ("a model of detectron2", r"^(backbone\.bottom_up|proposal_generator)\."),
    ("a model of MMDetection", r"^(rpn_head\.rpn_conv|roi_head\.bbox_head|bbox_head)\."),
    ("FCOS", r"^head\.regression_head\.bbox_ctrness\."),
    ("SSD", r"^head\.(classification_head|regression_head)\.module_list\."),
    ("RetinaNet", r"^head\.(classification_head|regression_head)\."),
    ("a YOLO model", r"^(model\.)*\d+\.(conv|cv\d|m)\."),
    ("DETR", r"^(transformer\.(encoder|decoder)|model\.(encoder|decoder))\.layers\."),
    ("Faster R-CNN with MobileNet V3", r"^backbone\.body\.\d+\.(block\.)?\d"),
    ("Faster R-CNN with ResNet-101 or ResNet-152", r"^backbone\.body\.layer3\.22\."),
    ("Faster R-CNN without a feature pyramid", r"^backbone\.(features\.)?\d+\."),
    ("a ResNet that classifies whole images", r"^layer4\.\d+\.conv2\.weight$"),
)


def is_state_dict(content: Any) -> bool:
    """Whether it is a dict from names to tensors, and not empty."""
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def state_dict_in(content: Any) -> dict[str, Tensor] | None:
    """The tensors in what a file holds: all of it, or a dict within it, whatever its name; None if there is none.

    Of several, a detector's come before others, and those under the usual names before others.
    """
    found = list(_state_dicts(content, _MOST_WRAPPERS))
    with_predictor = [one for one in found if any(key.endswith(PREDICTOR_KEY) for key in one)]
    return dict((with_predictor or found)[0]) if found else None


def _state_dicts(content: Any, depth: int) -> Iterator[Mapping[str, Tensor]]:
    if is_state_dict(content):
        yield content
    elif isinstance(content, Mapping) and depth > 0:
        for key in sorted(content, key=lambda key: key not in _LIKELY_WRAPPERS):  # stable: else in the file's order
            yield from _state_dicts(content[key], depth - 1)


def without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names that they have in the detector itself.

    What precedes the predictor's name, such as Lightning's "model.", is taken off every name. Where it would make two
    names one, or two detectors are in one dict, the names stay as they are.
    """
    stripped = {_without_wrappers(key): tensor for key, tensor in tensors.items() if key != "n_averaged"}
    if len(stripped) < len(tensors) - ("n_averaged" in tensors):
        return dict(tensors)
    prefixes = {key.removesuffix(PREDICTOR_KEY) for key in stripped if key.endswith(PREDICTOR_KEY)}
    if len(prefixes) != 1:
        return stripped
    (prefix,) = prefixes
    if not (prefix == "" or prefix.endswith(".")):
        return stripped
    return {key.removeprefix(prefix): tensor for key, tensor in stripped.items()}


def _without_wrappers(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _WRAPPING_COMPONENTS)


def other_architecture(keys: Collection[str]) -> str | None:
    """The detector whose tensors have these names, where it is a known one that is not ours."""
    for name, pattern in _ARCHITECTURES:
        if any(re.match(pattern, key) for key in keys):
            return name
    layer3 = {key for key in keys if key.startswith("backbone.body.layer3.")}
    if layer3 and "backbone.body.layer3.0.conv3.weight" not in keys:
        return "Faster R-CNN with ResNet-18 or ResNet-34"
    return None


def in_few_lines(problems: list[str]) -> str:
    """The first problems, one on each line, and how many more there are."""
    shown = problems[:_MOST_SHOWN]
    more = [f"and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
    return "\n  ".join([*shown, *more])


def other_file(path: pathlib.Path, *, is_torchs: bool) -> str | None:
    """What a file is that is not of the kind of its name, by how it begins; None if it may be.

    Args:
        is_torchs: its name is that of a file of torch.save, and otherwise of one of safetensors.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "is empty"
    for beginning, told in _BEGINNINGS:
        if head.startswith(beginning):
            return told
    by_torch = head.startswith((_TORCHS_ZIP, _TORCHS_OLD))
    if not is_torchs:
        return "is a file of torch.save: its name should end in .pth" if by_torch else None
    if head[8:9] == b"{":
        return "is a file of safetensors: its name should end in .safetensors"
    if head.startswith(b"\x80") and not by_torch:
        return f"is a file of Python's pickle, which is not read because it can run code. {_WITHOUT_PICKLE}"
    return f"is a program in TorchScript. {_WITHOUT_PICKLE}" if _is_torchscript(path) else None


def _is_torchscript(path: pathlib.Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def unusable_values(tensors: Mapping[str, Tensor]) -> str | None:
    """Why a detector with these numbers could find nothing, naming the tensor; None if they may be sound."""
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.is_sparse or tensor.is_quantized or tensor.is_complex():
            return f"{name} is sparse, quantized, complex or without values, and should be a dense tensor of numbers"
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        values = tensor.float()  # as it will be used: a float64 beyond float32's range is infinite then
        lowest, highest = (bound.item() for bound in values.aminmax())  # one pass; both are NaN where any value is
        if not (math.isfinite(lowest) and math.isfinite(highest)):
            count = int((~values.isfinite()).sum())
            return f"{name} holds {count} of {values.numel()} values that are NaN or infinite, as after a diverged run"
        if name.endswith("running_var") and lowest < 0:
            return f"{name} holds negative variances"
        if name.endswith(".weight") and tensor.dim() > 1 and lowest == highest == 0:
            return f"{name} holds zeros alone"
    return None


def foreign_objects(path: pathlib.Path) -> list[str]:
    """Names of what a `.pth` holds besides tensors and what is harmless; empty where that is unknown."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # noqa: BLE001 - like torch.load, whatever the broken bytes lead it to
        return []
