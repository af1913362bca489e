"""Pictures like blood smears, drawn from a seed: data for tests, demonstrations and CI without a download.

Red cells are pale-centred discs, white cells are larger and have lobed nuclei, platelets are small specks. Cells
overlap, light is uneven, the picture is a little blurred and noisy. The boxes are exact: they bound the pixels drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model.boxes import box_area
from model.structures import SizeHW, Target
from model.weights.categories import Categories

CLASS_NAMES = ("Platelets", "RBC", "WBC")  # as in BCCD
DEFAULT_SIZE_HW = (480, 640)
_KEPT_BYTES = 1 << 30  # pictures are kept up to this sum: drawing one takes longer than learning from it
_DATA_SEEDS = {"train": 1, "val": 2, "test": 3}

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One object of a picture.

    Attributes:
        radius: mean radius in pixels.
        outline: amplitude and phase of the waves that make the outline less than round.
    """

    class_name: str
    x: float
    y: float
    radius: float
    stretch: float
    angle: float
    outline: tuple[tuple[float, float], ...]


class SyntheticData:
    """A set of pictures, drawn when asked for; the same ones for the same arguments, on every machine.

    Args:
        split: "train", "val" or "test": different pictures.
        count: how many there are.
        size_hw: (height, width) of each. Cells keep their size relative to it.
        seed: other pictures for another seed.
    """

    categories = Categories.of_objects(CLASS_NAMES)

    def __init__(
        self, split: str = "train", *, count: int = 200, size_hw: SizeHW = DEFAULT_SIZE_HW, seed: int = 0
    ) -> None:
        if split not in _DATA_SEEDS:
            raise ValueError(f"the synthetic data have the splits {', '.join(_DATA_SEEDS)}, not {split!r}")
        self._split, self._count, self._size_hw, self._seed = split, count, size_hw, seed
        self._drawn: dict[int, tuple[Tensor, Target]] = {}
        self._keeps = 3 * count * size_hw[0] * size_hw[1] <= _KEPT_BYTES

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        return f"synthetic_{self._split}_{index:05d}"

    def size_hw(self, index: int) -> SizeHW:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._size_hw

    def target(self, index: int) -> Target:
        return self[index][1]

    def fingerprint(self) -> str:
        return f"synthetic {self._split}, {self._count} of {self._size_hw}, seed {self._seed}"

    def areas(self, index: int) -> Tensor:
        return box_area(self.target(index)["boxes"])

    def crowd_boxes(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        if not 0 <= index < self._count:
            raise IndexError(index)
        example = self._drawn.get(index) or self._draw(index)
        if self._keeps:
            self._drawn[index] = example
        return example

    def _draw(self, index: int) -> tuple[Tensor, Target]:
        random = np.random.default_rng((self._seed, _DATA_SEEDS[self._split], index))
        pixels, boxes, names = draw_smear(random, self._size_hw)
        labels = [CLASS_NAMES.index(name) + 1 for name in names]
        return (
            torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
            Target(
                boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                labels=torch.tensor(labels, dtype=torch.int64),
            ),
        )

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self[index][0].permute(1, 2, 0).numpy())


def draw_smear(random: np.random.Generator, size_hw: SizeHW) -> tuple[NDArray[np.uint8], list[list[float]], list[str]]:
    """One picture, uint8 `[H, W, 3]`, its boxes xyxy in pixels, and their class names."""
    height, width = size_hw
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = random.uniform((0.80, 0.76, 0.74), (0.92, 0.88, 0.86))
    boxes, names = [], []
    for cell in _place_cells(random, size_hw):
        box = _draw_cell(canvas, cell, random, rows, columns)
        if box is not None:
            boxes.append(box)
            names.append(cell.class_name)
    return _photographed(canvas, random, rows, columns), boxes, names


def _place_cells(random: np.random.Generator, size_hw: SizeHW) -> list[Cell]:
    """Red cells first, so that white cells and platelets lie over them. Each may overlap others, but not cover them."""
    unit = min(size_hw) / 480  # the cells' sizes below are those of BCCD's pictures, which are 480 high
    wanted = (
        [("RBC", random.uniform(38, 52)) for _ in range(int(random.integers(6, 15)))]
        + [("WBC", random.uniform(75, 105)) for _ in range(1 + int(random.random() < 0.15))]
        + [("Platelets", random.uniform(12, 20)) for _ in range(int(random.integers(0, 4)))]
    )
    cells: list[Cell] = []
    for name, size in wanted:
        radius = size * unit
        for _ in range(30):  # tries to find room; a full picture simply gets fewer cells
            x, y = random.uniform(0, size_hw[1]), random.uniform(0, size_hw[0])
            if all(np.hypot(x - c.x, y - c.y) > 0.8 * (radius + c.radius) for c in cells):
                waves = tuple((random.uniform(0, 0.05), random.uniform(0, 2 * np.pi)) for _ in range(3))
                stretch, angle = random.uniform(0.88, 1.0), random.uniform(0, np.pi)
                cells.append(
                    Cell(class_name=name, x=x, y=y, radius=radius, stretch=stretch, angle=angle, outline=waves)
                )
                break
    return cells


def _draw_cell(
    canvas: Floats, cell: Cell, random: np.random.Generator, rows: Floats, columns: Floats
) -> list[float] | None:
    """Blend the cell in; its box, or None where too little of it lies inside the picture."""
    reach = int(1.3 * cell.radius) + 3
    top, left = max(0, int(cell.y) - reach), max(0, int(cell.x) - reach)
    window = np.s_[top : int(cell.y) + reach, left : int(cell.x) + reach]
    depth = _depth(cell, rows[window], columns[window])  # 1 in the centre, 0 on the outline
    inside = np.clip(depth * cell.radius + 0.5, 0, 1)[..., None]
    if inside.sum() < 0.25 * np.pi * cell.radius**2:
        return None
    if cell.class_name == "WBC":
        colour = _white(cell, random, rows[window], columns[window])
    else:
        colour = _red(depth, random) if cell.class_name == "RBC" else _platelet(depth, random)
    canvas[window] += (colour - canvas[window]) * inside * random.uniform(0.75, 0.95)
    ys, xs = np.nonzero(inside[..., 0] >= 0.5)
    return [float(left + xs.min()), float(top + ys.min()), float(left + xs.max() + 1), float(top + ys.max() + 1)]


def _depth(cell: Cell, rows: Floats, columns: Floats) -> Floats:
    """How far inside an outline each pixel is, as a share of the radius; negative outside."""
    dx, dy = columns - cell.x, rows - cell.y
    along = dx * np.cos(cell.angle) + dy * np.sin(cell.angle)
    across = (dy * np.cos(cell.angle) - dx * np.sin(cell.angle)) / cell.stretch
    direction = np.arctan2(across, along)
    edge = 1 + sum(a * np.cos((k + 2) * direction + phase) for k, (a, phase) in enumerate(cell.outline))
    return np.asarray(edge - np.hypot(along, across) / cell.radius, dtype=np.float32)


def _red(depth: Floats, random: np.random.Generator) -> Floats:
    colour = np.asarray(random.uniform((0.74, 0.50, 0.50), (0.86, 0.62, 0.62)), np.float32)
    pallor = 0.35 * np.clip((depth - 0.45) / 0.4, 0, 1)[..., None]  # the thin middle lets light through
    return np.asarray(colour + (0.85 - colour) * pallor, np.float32)


def _white(cell: Cell, random: np.random.Generator, rows: Floats, columns: Floats) -> Floats:
    plasma = np.asarray(random.uniform((0.66, 0.60, 0.72), (0.78, 0.72, 0.82)), np.float32)
    nucleus = np.asarray(random.uniform((0.36, 0.22, 0.50), (0.46, 0.32, 0.62)), np.float32)
    shape = np.zeros_like(rows)
    for _ in range(int(random.integers(1, 5))):  # lobes
        angle, distance = random.uniform(0, 2 * np.pi), random.uniform(0.1, 0.4) * cell.radius
        radius = random.uniform(0.35, 0.55) * cell.radius
        x, y = cell.x + distance * np.cos(angle), cell.y + distance * np.sin(angle)
        shape = np.maximum(shape, np.clip((radius - np.hypot(columns - x, rows - y)) / 2 + 0.5, 0, 1))
    return np.asarray(plasma + (nucleus - plasma) * shape[..., None], np.float32)


def _platelet(depth: Floats, random: np.random.Generator) -> Floats:
    colour = np.asarray(random.uniform((0.50, 0.38, 0.60), (0.62, 0.50, 0.72)), np.float32)
    grain = random.uniform(-0.08, 0.08, depth.shape).astype(np.float32)
    return np.asarray(colour + grain[..., None], np.float32)


def _photographed(canvas: Floats, random: np.random.Generator, rows: Floats, columns: Floats) -> NDArray[np.uint8]:
    """Uneven light, a lens slightly out of focus, dirt, and the sensor's noise."""
    height, width = canvas.shape[:2]
    tilt_x, tilt_y = random.uniform(-0.12, 0.12, 2)
    light = 1 + tilt_x * (columns / width - 0.5) + tilt_y * (rows / height - 0.5)
    off_centre = np.hypot(columns / width - 0.5, rows / height - 0.5)
    canvas = canvas * (light - random.uniform(0, 0.2) * off_centre**2)[..., None]
    for _ in range(int(random.integers(0, 6))):  # specks of stain, which are not platelets
        y, x, radius = random.uniform(0, height), random.uniform(0, width), random.uniform(1, 2.5) * height / 480
        canvas *= 1 - 0.4 * np.clip(radius - np.hypot(columns - x, rows - y) + 0.5, 0, 1)[..., None]
    canvas = _blurred(canvas, int(random.integers(1, 3)))
    canvas += random.normal(0, 0.012, canvas.shape).astype(np.float32)
    return np.asarray(np.clip(canvas * 255, 0, 255), dtype=np.uint8)


def _blurred(canvas: Floats, times: int) -> Floats:
    """The binomial filter (1, 2, 1) / 4 along both axes, some times over."""
    for _ in range(times):
        for axis in (0, 1):
            padding = [(1, 1) if a == axis else (0, 0) for a in range(3)]
            padded = np.pad(canvas, padding, mode="edge")
            size = canvas.shape[axis]
            before, middle, after = (np.take(padded, range(k, k + size), axis) for k in range(3))
            canvas = np.asarray((before + 2 * middle + after) / 4, np.float32)
    return canvas
