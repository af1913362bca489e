"""Checkpoints: what a file of weights holds, and how it gets into a model, strictly.

Three formats are read and written: `.safetensors`; `.pth` with `weights_only=True`, so that a file from anywhere
cannot run code; and `.frcnn`, which is small but rounds the weights (see `packed`). All may carry a `CheckpointInfo`
beside the tensors. Fetching the official files is in `download`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models._api import Weights

from model.arguments import BUNDLED, COCO_V1, SUFFIXES, unreadable_weights
from model.categories import Categories
from model.download import WeightsUnavailableError, cached_path, fetch
from model.faster_rcnn import FasterRCNN, modern_key
from model.packed import DEFAULT_STEP, pack, unpack

BUNDLED_PATH = Path(__file__).parent / "bundled" / "blood_cells.frcnn"
INFO_KEY = "faster_rcnn"  # under which a file's info is kept: safetensors metadata, or a top-level key of a .pth
_STATE_DICT_KEYS = ("model", "state_dict")  # where training scripts put the tensors in a .pth
_PREDICTOR_KEY = "roi_heads.box_predictor.cls_score.weight"
# What a file may set: numbers, never modules.
_MODEL_KWARGS = frozenset(
    set(inspect.signature(FasterRCNN).parameters)
    - {"backbone", "num_classes", "rpn_anchor_generator", "rpn_head"}
    - {"box_roi_pool", "box_head", "box_predictor", "kwargs"}
    | {"size_divisible", "fixed_size"}
)


class WeightsError(ValueError):
    """A file of weights cannot be read, or does not fit the model. The message tells what to do."""


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What tensors alone do not tell about a detector.

    Attributes:
        class_names: names of all K classes, `__background__` first; None if unknown.
        norm_eps: epsilon of the batch norms. The official COCO file needs 0.0, others 1e-5.
        model_kwargs: further keywords of `FasterRCNN` that the weights were trained with, such as `min_size`.
    """

    class_names: tuple[str, ...] | None = None
    norm_eps: float = 1e-5
    model_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A state dict in today's spelling, and what is known about it."""

    name: str  # "COCO_V1", "bundled", or the file's name
    state_dict: dict[str, Tensor]
    info: CheckpointInfo

    @property
    def num_classes(self) -> int:
        """K, background included.

        Raises:
            WeightsError: the tensors are not those of a detector with the standard predictor.
        """
        if _PREDICTOR_KEY not in self.state_dict or self.state_dict[_PREDICTOR_KEY].dim() != 2:
            raise WeightsError(
                f"{self.name} is not a Faster R-CNN checkpoint: it has no matrix {_PREDICTOR_KEY}. "
                f"Its first keys: {', '.join(list(self.state_dict)[:4]) or 'none'}"
            )
        return self.state_dict[_PREDICTOR_KEY].shape[0]

    @property
    def categories(self) -> Categories:
        """Names of the classes: the file's own; else COCO's if there are as many; else stand-ins.

        Raises:
            WeightsError: the file's own names are not as many as its classes.
        """
        names = self.info.class_names
        if names is not None:
            if len(names) != self.num_classes:
                raise WeightsError(f"{self.name} names {len(names)} classes but has {self.num_classes}")
            return Categories(names)
        coco = coco_categories()
        return coco if len(coco) == self.num_classes else Categories.unnamed(self.num_classes)


def official_weights(model_name: str, weights_name: str) -> Weights:
    """torchvision's own entry for published weights: address, hash, class names.

    Raises:
        WeightsError: there is no such name.
    """
    known = get_model_weights(model_name)
    if weights_name == "DEFAULT":
        weights_name = known.DEFAULT.name
    if weights_name not in known.__members__:
        raise WeightsError(
            f"{model_name} has the published weights {', '.join(known.__members__)}, not {weights_name!r}"
        )
    entry: Weights = known[weights_name].value
    return entry


def coco_weights() -> Weights:
    return official_weights("fasterrcnn_resnet50_fpn", COCO_V1)


def coco_categories() -> Categories:
    """COCO's 91 class names, with the ids that COCO skips as "N/A"."""
    return Categories(tuple(coco_weights().meta["categories"]))


def coco_is_cached() -> bool:
    return cached_path(coco_weights().url).is_file()


def fetch_coco(*, progress: bool = True, timeout_s: float | None = None) -> Path:
    """The official detector's file, fetched unless it is in the cache.

    Raises:
        WeightsUnavailableError: it cannot be fetched; tells the ways forward.
    """
    return fetch(coco_weights().url, progress=progress, timeout_s=timeout_s)


def read_coco(*, progress: bool = True) -> Checkpoint:
    """The official COCO detector (see `fetch_coco`).

    Raises:
        WeightsUnavailableError: it cannot be fetched.
        WeightsError: what lies in the cache under its name is something else, or may not be read.
    """
    path = fetch_coco(progress=progress)
    _refuse_unreadable(path)
    if not _is_official_coco(path):
        raise WeightsError(f"{path} is not the official file, or is damaged: delete it and try again")
    return _coco_checkpoint(_read_pth(path)[0])


def bundled_is_present() -> bool:
    """Whether this installation has the detector of blood cells that ships with the package."""
    return BUNDLED_PATH.is_file()


def read_bundled() -> Checkpoint:
    """The detector that ships with the package: it finds red and white blood cells and platelets.

    Raises:
        WeightsError: the installation lacks its file, or the file is broken.
    """
    if not bundled_is_present():
        raise WeightsError(f"this installation has no bundled weights: {BUNDLED_PATH} is missing. Install it again")
    return replace(read_checkpoint(BUNDLED_PATH), name=BUNDLED)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a `.pth`, `.pt`, `.safetensors` or `.frcnn` file.

    A `.pth` holds a state dict, or a dict with one under "model" or "state_dict". The official COCO file is known by
    its hash, wherever it lies and whatever it is called.

    Raises:
        WeightsError: the file is missing, may not be read, is broken, or of another kind.
    """
    path = Path(path)
    _refuse_unreadable(path)
    if path.suffix == ".safetensors":
        tensors, info = _read_safetensors(path)
    elif path.suffix in {".pth", ".pt"}:
        tensors, info = _read_pth(path)
    elif path.suffix == ".frcnn":
        tensors, info = _read_packed(path)
    else:
        raise WeightsError(f"the weights {path} end in none of {', '.join(SUFFIXES)}")
    if info is None and _is_official_coco(path):
        return _coco_checkpoint(tensors)
    return Checkpoint(name=path.name, state_dict=_modern(tensors), info=info or CheckpointInfo())


def _refuse_unreadable(path: Path) -> None:
    """Readers of the formats tell it each in another way, and some as a missing file, or a broken one."""
    if message := unreadable_weights(path):
        raise WeightsError(message)


def _coco_checkpoint(tensors: Mapping[str, Tensor]) -> Checkpoint:
    """The official tensors with what they do not tell."""
    info = CheckpointInfo(class_names=coco_categories().names, norm_eps=0.0)
    return Checkpoint(name=COCO_V1, state_dict=_modern(tensors), info=info)


def _modern(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {modern_key(key): tensor for key, tensor in tensors.items()}


def save_checkpoint(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor],
    info: CheckpointInfo,
    *,
    packing_step: float = DEFAULT_STEP,
) -> None:
    """Write a file that `read_checkpoint` reads back, by its ending; a crash leaves the old file or the new one.

    Args:
        packing_step: how coarsely a `.frcnn` rounds the weights, see `pack`.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"the weights {path} end in none of {', '.join(SUFFIXES)}")
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state_dict.items() if not _is_counter(key)}
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        if path.suffix == ".safetensors":
            # Not by `save_file`, whose files nobody else may read.
            partial.write_bytes(safetensors.torch.save(tensors, metadata={INFO_KEY: json.dumps(asdict(info))}))
        elif path.suffix == ".frcnn":
            partial.write_bytes(_packed(path, tensors, info, packing_step))
        else:
            torch.save({"model": tensors, INFO_KEY: asdict(info)}, partial)
        with partial.open("rb+") as file:  # or a power cut could leave the new name on an empty file
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _packed(path: Path, tensors: Mapping[str, Tensor], info: CheckpointInfo, step: float) -> bytes:
    try:
        return pack(tensors, asdict(info), step=step)
    except ValueError as error:
        raise WeightsError(f"{path} cannot be written: {error}") from error


def load_strictly(model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Copy every tensor into the model, or none.

    Batch counters of live batch norms may be absent or left over: detection does not use them.

    Raises:
        WeightsError: keys are missing, unexpected, or of another shape; each is told.
    """
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = _modern(state_dict)
    problems = (
        [f"missing: {k} {list(shape)}" for k, shape in expected.items() if k not in found and not _is_counter(k)]
        + [f"unexpected: {k} {list(t.shape)}" for k, t in found.items() if k not in expected and not _is_counter(k)]
        + [
            f"misshapen: {k} is {list(t.shape)}, the model has {list(expected[k])}"
            for k, t in found.items()
            if k in expected and tuple(t.shape) != expected[k]
        ]
    )
    if problems:
        raise WeightsError(f"{source} does not fit the model in {len(problems)} places:\n  " + "\n  ".join(problems))
    model.load_state_dict({k: t for k, t in found.items() if k in expected}, strict=False)


def _is_counter(key: str) -> bool:
    return key.rsplit(".", 1)[-1] == "num_batches_tracked"


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
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises whatever the broken bytes lead it to
        raise WeightsError(
            f"{path} cannot be read: it is broken, or holds more than tensors, which is not loaded "
            f"because such a file can run code. Save the model's state_dict() instead. ({_first_line(error)})"
        ) from error
    info = None
    if isinstance(content, dict):
        try:
            info = _info_from(content[INFO_KEY]) if INFO_KEY in content else None
        except (ValueError, TypeError) as error:
            raise WeightsError(f"{path} has metadata that cannot be understood: {error}") from error
        content = next((content[key] for key in _STATE_DICT_KEYS if isinstance(content.get(key), dict)), content)
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in content.items())
    ):
        raise WeightsError(f"{path} holds no state dict: a dict from names to tensors, alone or under 'model'")
    return dict(content), info


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


def _is_official_coco(path: Path) -> bool:
    """Published files carry the first digits of their SHA-256 in their name."""
    digits = Path(coco_weights().url).stem.rsplit("-", 1)[1]
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(digits)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


__all__ = [
    "Checkpoint",
    "CheckpointInfo",
    "WeightsError",
    "WeightsUnavailableError",
    "bundled_is_present",
    "coco_categories",
    "coco_is_cached",
    "coco_weights",
    "fetch_coco",
    "load_strictly",
    "official_weights",
    "read_bundled",
    "read_checkpoint",
    "read_coco",
    "save_checkpoint",
]
