"""Labelled images: what training and evaluation read.

Glossary: N images, G ground-truth boxes of an image; boxes are xyxy in pixels of the upright image; label 0 is the
background and belongs to no box.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from model.boxes import box_area
from model.data.report import Report
from model.images.decoding import decode, open_image, read_pixels
from model.images.errors import ImageError, ImageTooLargeError, UnsupportedImageError
from model.structures import SizeHW, Target
from model.weights.categories import BACKGROUND_NAME, UNUSED_NAME, Categories

INSTALL_EXTRA = 'make install in a clone, or pip install "PATH_OF_CLONE[train]"'
MIN_BOX_SIDE = 1.0  # px; a thinner box has no area to learn from
_CACHE_BYTES = 1 << 30  # decoded images are kept up to this sum: a small set is then decoded once
_MAX_PIXELS = 100_000_000  # an image beyond this is taken for a decompression bomb


class DataError(ValueError):
    """The data cannot be trained on or measured with. The message says what to do."""


class DetectionData(Protocol):
    """Images with their boxes, by index."""

    categories: Categories

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What the image is called in reports."""
        ...

    def size_hw(self, index: int) -> SizeHW: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """The image, uint8 `[3, H, W]`, and its `boxes` and `labels`."""
        ...

    def target(self, index: int) -> Target:
        """The boxes and labels alone, without decoding the image."""
        ...

    def fingerprint(self) -> str:
        """The same for two sets only if they have the same images, by name and size, with the same boxes."""
        ...

    def areas(self, index: int) -> Tensor:
        """`[G]`, by which evaluation sorts objects into small and large: the outline's if known, else the box's."""
        ...

    def crowd_boxes(self, index: int) -> tuple[Tensor, Tensor]:
        """Boxes `[G, 4]` and labels `[G]` of regions where detections are neither right nor wrong."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RawBox:
    """A box as the annotation file has it."""

    class_name: str
    xyxy: tuple[float, float, float, float]
    is_crowd: bool = False
    area: float | None = None  # of the object's outline, where the file states it


@dataclass(frozen=True, slots=True, kw_only=True)
class RawExample:
    """An image as the annotation file has it: nothing is checked yet."""

    path: Path
    stated_hw: SizeHW | None
    boxes: Sequence[RawBox]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An image that can be read, with proper boxes inside it."""

    path: Path
    size_hw: SizeHW
    transposed: bool  # the boxes belong to the stored pixels, not to those that EXIF turns upright
    boxes: Tensor  # [G, 4]
    labels: Tensor  # [G]
    areas: Tensor  # [G]
    crowd_boxes: Tensor
    crowd_labels: Tensor


class FileData:
    """Images of a folder, each checked by `settle`."""

    def __init__(self, examples: Sequence[Example], categories: Categories) -> None:
        self.categories = categories
        self._examples = list(examples)
        self._cache: dict[int, Tensor] | None = {} if _decoded_bytes(examples) <= _CACHE_BYTES else None

    def __len__(self) -> int:
        return len(self._examples)

    def name(self, index: int) -> str:
        return self._examples[index].path.name

    def size_hw(self, index: int) -> SizeHW:
        return self._examples[index].size_hw

    def target(self, index: int) -> Target:
        return Target(boxes=self._examples[index].boxes, labels=self._examples[index].labels)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.categories.names).encode())
        for one in self._examples:
            values = (one.path.name, one.size_hw, one.boxes.tolist(), one.labels.tolist(), one.crowd_boxes.tolist())
            digest.update(repr(values).encode())
        return digest.hexdigest()

    def areas(self, index: int) -> Tensor:
        return self._examples[index].areas

    def crowd_boxes(self, index: int) -> tuple[Tensor, Tensor]:
        return self._examples[index].crowd_boxes, self._examples[index].crowd_labels

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        example = self._examples[index]
        image = None if self._cache is None else self._cache.get(index)
        if image is None:
            image = read_image(example.path, as_stored=example.transposed)
            if self._cache is not None:
                self._cache[index] = image
        return image, self.target(index)


def read_image(path: Path, *, as_stored: bool = False) -> Tensor:
    """Decode to RGB as serving does, uint8 `[3, H, W]`, turned upright as EXIF says unless `as_stored`.

    Raises:
        DataError: it cannot be read or decoded, or is too large.
    """
    try:
        pixels = decode(path.read_bytes(), max_pixels=_MAX_PIXELS, upright=not as_stored)
    except (OSError, ImageError) as error:
        raise DataError(f"{path} cannot be decoded: {error}. Replace the file, or take it out of the data") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def settle(raw_examples: Sequence[RawExample], categories: Categories, report: Report, *, keep_empty: bool) -> FileData:
    """Decode every image once, put its boxes right, and leave out what cannot be used, counting it.

    Args:
        keep_empty: keep images without boxes. Evaluation does, since every detection there is wrong.

    Raises:
        DataError: nothing is left.
    """
    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(_stored_and_upright_hw, [raw.path for raw in raw_examples]))
    examples = []
    for raw, found in zip(raw_examples, sizes, strict=True):
        if isinstance(found, str):
            report.note(found, raw.path.name)
            continue
        example = _settle_one(raw, *found, categories, report)
        if len(example.boxes) == 0:
            report.note("image without boxes" + (", kept" if keep_empty else ", left out"), raw.path.name)
        if len(example.boxes) or keep_empty:
            examples.append(example)
    report.used_images = len(examples)
    report.used_boxes = sum(len(example.boxes) for example in examples)
    if report.used_boxes == 0:
        raise DataError("\n".join([*report.lines(), "No image with a usable box is left. Check the reasons above."]))
    return FileData(examples, categories)


def _stored_and_upright_hw(path: Path) -> tuple[SizeHW, SizeHW] | str:
    """The image's two sizes, or why it cannot be used."""
    if not path.is_file():
        return "image file missing, left out"
    try:
        image = open_image(path.read_bytes(), max_pixels=_MAX_PIXELS)
        height, width, _ = read_pixels(image).shape
    except OSError:
        return "image file not readable, left out"
    except ImageTooLargeError:
        return "image too large, left out"
    except UnsupportedImageError:
        return "image of a kind that is not taken, left out"
    except ImageError:
        return "image broken or truncated, left out"
    return (image.height, image.width), (height, width)


def _settle_one(
    raw: RawExample, stored_hw: SizeHW, upright_hw: SizeHW, categories: Categories, report: Report
) -> Example:
    """Boxes are pixels of the real image, whatever size the annotation states; corners outside move to its border."""
    transposed = raw.stated_hw == stored_hw != upright_hw
    size_hw = stored_hw if transposed else upright_hw
    if raw.stated_hw is not None and raw.stated_hw != size_hw:
        report.note("annotation states a wrong image size, ignored", raw.path.name)
    labels = {name: label for label, name in categories.objects().items()}
    kept: dict[bool, list[tuple[list[float], int, float | None]]] = {False: [], True: []}
    for box in raw.boxes:
        if box.class_name not in labels:
            report.note(f"box of the class {box.class_name!r}, which is not learned, left out", raw.path.name)
            continue
        if box.xyxy[2] < box.xyxy[0] or box.xyxy[3] < box.xyxy[1]:
            report.note("box with its corners swapped, left out", raw.path.name)
            continue
        clipped = _clip(box.xyxy, size_hw)
        if not (clipped[2] - clipped[0] >= MIN_BOX_SIDE and clipped[3] - clipped[1] >= MIN_BOX_SIDE):
            report.note("box without area inside the image, left out", raw.path.name)
            continue
        if tuple(clipped) != box.xyxy:
            report.note("box reaching out of the image, clipped", raw.path.name)
        if box.is_crowd:
            report.note("crowd box, not learned", raw.path.name)
        kept[box.is_crowd].append((clipped, labels[box.class_name], box.area))
    boxes, box_labels, areas = _tensors(kept[False])
    crowd_boxes, crowd_labels, _ = _tensors(kept[True])
    return Example(
        path=raw.path,
        size_hw=size_hw,
        transposed=transposed,
        boxes=boxes,
        labels=box_labels,
        areas=areas,
        crowd_boxes=crowd_boxes,
        crowd_labels=crowd_labels,
    )


def _clip(xyxy: tuple[float, float, float, float], size_hw: SizeHW) -> list[float]:
    height, width = size_hw
    x1, y1, x2, y2 = xyxy
    return [min(max(x1, 0.0), width), min(max(y1, 0.0), height), min(max(x2, 0.0), width), min(max(y2, 0.0), height)]


def _tensors(found: Sequence[tuple[list[float], int, float | None]]) -> tuple[Tensor, Tensor, Tensor]:
    boxes = torch.tensor([box for box, _, _ in found], dtype=torch.float32).reshape(-1, 4)
    stated = torch.tensor([math.nan if area is None else area for _, _, area in found], dtype=torch.float32)
    return (
        boxes,
        torch.tensor([label for _, label, _ in found], dtype=torch.int64),
        torch.where(stated.isnan(), box_area(boxes), stated),
    )


def _decoded_bytes(examples: Sequence[Example]) -> int:
    return sum(3 * example.size_hw[0] * example.size_hw[1] for example in examples)


def object_names(names: Iterable[str]) -> list[str]:
    """Each name once, without those that mean no object to a detector; boxes of these are left out and counted."""
    return [name for name in dict.fromkeys(names) if name not in {BACKGROUND_NAME, UNUSED_NAME}]


def held_out(names: Sequence[str], split: str) -> Iterator[str]:
    """The splits of data that come without: of the sorted names every tenth for "val", the rest for "train"; "all".

    Of fewer than ten, the last one is for "val".

    Raises:
        DataError: another split is asked for.
    """
    if split not in {"train", "val", "all"}:
        raise DataError(f"the data come without splits, so there are only train, val and all; not {split!r}")
    first_held = min(10, len(names)) - 1
    for position, name in enumerate(sorted(names)):
        if split == "all" or (position % 10 == first_held) == (split == "val"):
            yield name
