"""Files of weights: tensors by name, and what tensors do not say about their detector.

Three formats are read and written: `.safetensors`; `.pth` with `weights_only=True`, so that a file from anywhere
cannot run code; and `.frcnn`, which is small but rounds the weights (see `packed`). All may carry a `CheckpointInfo`
beside the tensors.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from model.faster_rcnn import FasterRCNN
from model.weights.foreign import HARMLESS_GLOBALS, foreign_objects, other_file, state_dict_in, unusable_values
from model.weights.names import SUFFIXES, TORCH_SUFFIXES
from model.weights.packed import DEFAULT_STEP, pack, unpack
from model.weights.whole_files import replacing, write_by_torch

INFO_KEY = "faster_rcnn"  # under which a file's info is kept: safetensors metadata, or a top-level key of a .pth
# What a file may set: numbers, never modules.
_MODEL_KWARGS = frozenset(
    set(inspect.signature(FasterRCNN).parameters)
    - {"backbone", "num_classes", "rpn_anchor_generator", "rpn_head"}
    - {"box_roi_pool", "box_head", "box_predictor", "kwargs"}
    | {"size_divisible", "fixed_size"}
)


class WeightsError(ValueError):
    """A file of weights cannot be read, or does not fit the model. The message says what to do."""


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What tensors alone do not say about a detector.

    Attributes:
        class_names: names of all K classes, `__background__` first; None if unknown.
        norm_eps: epsilon of the batch norms. The official COCO file needs 0.0, others 1e-5.
        model_kwargs: further keywords of `FasterRCNN` that the weights were trained with, such as `min_size`.
    """

    class_names: tuple[str, ...] | None = None
    norm_eps: float = 1e-5
    model_kwargs: dict[str, Any] = field(default_factory=dict)


def read_file(path: Path) -> tuple[dict[str, Tensor], CheckpointInfo | None]:
    """The tensors of a file by their names there, and its `CheckpointInfo`.

    Raises:
        WeightsError: it is broken, or of another kind, or holds numbers with which nothing can be found.
    """
    suffix = path.suffix.lower()
    if suffix in {".safetensors", *TORCH_SUFFIXES}:
        if other := other_file(path, is_torchs=suffix in TORCH_SUFFIXES):
            raise WeightsError(f"{path} {other}")
        tensors, info = _read_pth(path) if suffix in TORCH_SUFFIXES else _read_safetensors(path)
    elif suffix == ".frcnn":
        tensors, info = _read_packed(path)
    else:
        raise _unknown_ending(path, dict.fromkeys([*SUFFIXES, *TORCH_SUFFIXES]))
    if problem := unusable_values(tensors):
        raise WeightsError(f"{path} cannot be used: {problem}. Take an earlier checkpoint, or train again")
    return tensors, info


def save_checkpoint(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor],
    info: CheckpointInfo,
    *,
    packing_step: float = DEFAULT_STEP,
) -> None:
    """Write a file of the kind that its ending names; a crash leaves the old file or the new one.

    Args:
        packing_step: how coarsely a `.frcnn` rounds the weights, see `pack`.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise _unknown_ending(path, SUFFIXES)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state_dict.items() if not is_counter(key)}
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with replacing(path, partial):
        if path.suffix == ".safetensors":
            # Not by `save_file`, whose files only their owner may read.
            partial.write_bytes(safetensors.torch.save(tensors, metadata={INFO_KEY: json.dumps(asdict(info))}))
        elif path.suffix == ".frcnn":
            partial.write_bytes(_packed(path, tensors, info, packing_step))
        else:
            write_by_torch({"model": tensors, INFO_KEY: asdict(info)}, partial)


def _packed(path: Path, tensors: Mapping[str, Tensor], info: CheckpointInfo, step: float) -> bytes:
    try:
        return pack(tensors, asdict(info), step=step)
    except ValueError as error:
        raise WeightsError(f"{path} cannot be written: {error}") from error


def is_counter(key: str) -> bool:
    return key.rsplit(".", 1)[-1] == "num_batches_tracked"


def _unknown_ending(path: Path, suffixes: Iterable[str]) -> WeightsError:
    return WeightsError(f"the weights {path} end in none of {', '.join(suffixes)}")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], CheckpointInfo | None]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is not a readable .safetensors file: {error}") from error
    try:
        return tensors, _info_from(json.loads(metadata[INFO_KEY])) if INFO_KEY in metadata else None
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path} has metadata that cannot be understood: {error}") from error


def _read_pth(path: Path) -> tuple[dict[str, Tensor], CheckpointInfo | None]:
    content = _loaded(path)
    info = None
    if isinstance(content, dict) and INFO_KEY in content:
        try:
            info = _info_from(content[INFO_KEY])
        except (ValueError, TypeError) as error:
            raise WeightsError(f"{path} has metadata that cannot be understood: {error}") from error
    tensors = state_dict_in(content)
    if tensors is None:
        raise WeightsError(
            f"{path} holds no state dict: a dict from names to tensors, alone or within another, under 'model' "
            f"for instance. {_shown(content)}"
        )
    return tensors, info


def _loaded(path: Path) -> Any:
    with torch.serialization.safe_globals(HARMLESS_GLOBALS):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's unpickler raises whatever the broken bytes lead it to
            if objects := foreign_objects(path):
                shown = ", ".join(objects[:4]) + (", ..." if len(objects) > 4 else "")
                raise WeightsError(
                    f"{path} holds more than tensors ({shown}), and is not loaded because such a file can run code. "
                    "Where it was made, save model.state_dict() instead"
                ) from error
            if not _begins_like_torch(path):
                raise WeightsError(
                    f"{path} cannot be read: it begins like neither of the files that torch.save writes, a zip archive "
                    "or a pickle. Save the model's state_dict() with it"
                ) from error
            raise WeightsError(
                f"{path} cannot be read: it is broken, or holds more than tensors, which is not loaded "
                f"because such a file can run code. Save the model's state_dict() instead. ({_reason(error)})"
            ) from error


def _begins_like_torch(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) in {b"PK", b"\x80\x02"}


def _shown(content: Any) -> str:
    if not isinstance(content, dict):
        return f"It holds a {type(content).__name__}"
    keys = ", ".join(str(key)[:40] for key in list(content)[:8])
    return f"Its keys: {keys or 'none'}"


def _read_packed(path: Path) -> tuple[dict[str, Tensor], CheckpointInfo]:
    try:
        tensors, info = unpack(path.read_bytes())
        return tensors, _info_from(info)
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path} is not a readable .frcnn file: {error}") from error


def _info_from(raw: Any) -> CheckpointInfo:
    known = CheckpointInfo(**raw)
    if unknown := set(known.model_kwargs) - _MODEL_KWARGS:
        raise ValueError(f"its model arguments {sorted(unknown)} are not settings of a FasterRCNN")
    names = known.class_names
    return CheckpointInfo(
        class_names=None if names is None else tuple(str(name) for name in names),
        norm_eps=float(known.norm_eps),
        model_kwargs=dict(known.model_kwargs),
    )


def _reason(error: BaseException) -> str:
    """The first line of what torch says, without its colours for a terminal, and its advice to run the file's code."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    text = text.rpartition("WeightsUnpickler error:")[2].strip()
    return text.partition("\n")[0].strip() or type(error).__name__
