"""Checkpoints by where they come from: a file, the official COCO detector, the one in the package; and into a model.

How files hold them is in `files`, and how the official ones are fetched in `download`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models._api import Weights

from model.architectures import ARCHITECTURES, FASTERRCNN_RESNET50_FPN, Architecture, architecture_of
from model.faster_rcnn import modern_key
from model.weights.categories import Categories
from model.weights.download import WeightsUnavailableError, cached_path, fetch
from model.weights.files import CheckpointInfo, WeightsError, is_counter, read_file, save_checkpoint
from model.weights.foreign import PREDICTOR_KEY, in_few_lines, other_architecture, without_prefix
from model.weights.names import BUNDLED, COCO_V1, unreadable_weights

_VERSION_DIGITS = 12
BUNDLED_PATH = Path(__file__).parents[1] / "bundled" / "blood_cells.frcnn"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A state dict in today's spelling, and what is known about it."""

    name: str  # "COCO_V1", "bundled", or the file's name
    state_dict: dict[str, Tensor]
    info: CheckpointInfo
    sha256: str | None = None  # of the file, in hexadecimal; None without one

    @property
    def architecture(self) -> Architecture:
        """The detector that the tensors belong to, by their names."""
        return architecture_of(self.state_dict)

    @property
    def version(self) -> str:
        """Tells weights apart: the first 12 digits of the file's SHA-256; without a file, of the tensors'."""
        return (self.sha256 or _tensors_sha256(self.state_dict))[:_VERSION_DIGITS]

    @property
    def num_classes(self) -> int:
        """K, background included.

        Raises:
            WeightsError: the tensors are not those of a detector with the standard predictor.
        """
        if PREDICTOR_KEY not in self.state_dict or self.state_dict[PREDICTOR_KEY].dim() != 2:
            _reject_other_architecture(self.name, self.state_dict, self.architecture)
            raise WeightsError(
                f"{self.name} is not a Faster R-CNN checkpoint: it has no matrix {PREDICTOR_KEY}. "
                f"Its first keys: {', '.join(list(self.state_dict)[:4]) or 'none'}"
            )
        return self.state_dict[PREDICTOR_KEY].shape[0]

    def named(self, objects: Sequence[str]) -> Checkpoint:
        """The same with these names of its classes, the background's not among them; without any, itself.

        Raises:
            WeightsError: they are not as many as its classes.
        """
        if not objects:
            return self
        if len(objects) != self.num_classes - 1:
            raise WeightsError(
                f"{self.name} has {self.num_classes - 1} classes besides the background, but {len(objects)} names are "
                f"given: {', '.join(objects)}"
            )
        return replace(self, info=replace(self.info, class_names=Categories.of_objects(objects).names))

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


def coco_weights(architecture: Architecture = FASTERRCNN_RESNET50_FPN) -> Weights:
    return official_weights(architecture.name, COCO_V1)


def coco_categories() -> Categories:
    """COCO's 91 class names, with the ids that COCO skips as "N/A"."""
    return Categories(tuple(coco_weights().meta["categories"]))


def coco_is_cached(architecture: Architecture = FASTERRCNN_RESNET50_FPN) -> bool:
    return cached_path(coco_weights(architecture).url).is_file()


def fetch_coco(
    architecture: Architecture = FASTERRCNN_RESNET50_FPN, *, progress: bool = True, timeout_s: float | None = None
) -> Path:
    """The official detector's file, fetched unless it is in the cache.

    Raises:
        WeightsUnavailableError: it cannot be fetched; names the ways forward.
    """
    return fetch(coco_weights(architecture).url, progress=progress, timeout_s=timeout_s)


def read_coco(architecture: Architecture = FASTERRCNN_RESNET50_FPN, *, progress: bool = True) -> Checkpoint:
    """The official COCO detector (see `fetch_coco`).

    Raises:
        WeightsUnavailableError: it cannot be fetched.
        WeightsError: the cache holds something else under its name, or the file may not be read.
    """
    path = fetch_coco(architecture, progress=progress)
    _reject_unreadable(path)
    digest = _sha256(path)
    if _official_coco(digest) is not architecture:
        raise WeightsError(f"{path} is not the official file, or is damaged: delete it and try again")
    return _coco_checkpoint(read_file(path)[0], architecture, digest)


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
    """Read a `.pth`, `.pt`, `.ckpt`, `.pth.tar`, `.safetensors` or `.frcnn` file.

    A `.pth` holds a state dict, alone or in dicts of whatever a training script keeps; a prefix that its names share,
    as DataParallel, Lightning and torch.compile put there, is taken off. The official COCO file is known by its hash,
    wherever it lies and whatever it is called.

    Raises:
        WeightsError: the file is missing, may not be read, is broken, or of another kind, or changes meanwhile.
    """
    path = Path(path)
    _reject_unreadable(path)
    before = _state(path)
    digest = _sha256(path)
    tensors, info = read_file(path)
    if _state(path) != before:
        raise WeightsError(f"{path} changed while it was read. Write the new file beside it, and rename that")
    if info is None and (architecture := _official_coco(digest)) is not None:
        return _coco_checkpoint(tensors, architecture, digest)
    return Checkpoint(
        name=path.name,
        state_dict=_modern(without_prefix(tensors)),
        info=info or CheckpointInfo(),
        sha256=digest,
    )


def _reject_unreadable(path: Path) -> None:
    """Reject a path that cannot be read: each format's reader has another error for it, some a misleading one."""
    if message := unreadable_weights(path):
        raise WeightsError(message)


def _coco_checkpoint(tensors: Mapping[str, Tensor], architecture: Architecture, digest: str) -> Checkpoint:
    """The official tensors, with the class names and the epsilon that the file lacks."""
    info = CheckpointInfo(class_names=coco_categories().names, norm_eps=architecture.coco_norm_eps)
    return Checkpoint(name=COCO_V1, state_dict=_modern(tensors), info=info, sha256=digest)


def _modern(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {modern_key(key): tensor for key, tensor in tensors.items()}


def load_strictly(model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Copy every tensor into the model, or none.

    Batch counters of live batch norms may be absent or left over: detection does not use them.

    Raises:
        WeightsError: keys are missing, unexpected, or of another shape; the first are named, or the name of the
            detector that they are of.
    """
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = _modern(state_dict)
    problems = (
        [f"missing: {k} {list(shape)}" for k, shape in expected.items() if k not in found and not is_counter(k)]
        + [f"unexpected: {k} {list(t.shape)}" for k, t in found.items() if k not in expected and not is_counter(k)]
        + [
            f"misshapen: {k} is {list(t.shape)}, the model has {list(expected[k])}"
            for k, t in found.items()
            if k in expected and tuple(t.shape) != expected[k]
        ]
    )
    if problems:
        _reject_other_architecture(source, found, architecture_of(expected))
        raise WeightsError(f"{source} does not fit the model in {len(problems)} places:\n  {in_few_lines(problems)}")
    model.load_state_dict({k: t for k, t in found.items() if k in expected}, strict=False)


def check_architecture(checkpoint: Checkpoint, wanted: Architecture) -> None:
    """Reject a checkpoint of another architecture.

    Raises:
        WeightsError: names the one that it has.
    """
    _reject_other_architecture(checkpoint.name, checkpoint.state_dict, wanted)


def _reject_other_architecture(source: str, tensors: Mapping[str, Tensor], wanted: Architecture) -> None:
    name = other_architecture(tensors)
    if name is None and architecture_of(tensors) is not wanted:
        name = architecture_of(tensors).name
    if name is not None:
        first_keys = ", ".join(list(tensors)[:4])
        raise WeightsError(f"{source} holds {name}, and the detector is {wanted.name}. Its first keys: {first_keys}")


def _state(path: Path) -> tuple[int, int, int]:
    """What another file at this path, or other content, would change."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _official_coco(digest: str) -> Architecture | None:
    """The architecture whose official COCO file this is: a published file's name ends with the start of its SHA-256."""
    published = ((one, Path(coco_weights(one).url).stem.rsplit("-", 1)[1]) for one in ARCHITECTURES.values())
    return next((one for one, digits in published if digest.startswith(digits)), None)


__all__ = [
    "Checkpoint",
    "CheckpointInfo",
    "WeightsError",
    "WeightsUnavailableError",
    "bundled_is_present",
    "check_architecture",
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
