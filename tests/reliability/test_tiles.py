"""A mosaic of real pictures: in tiles the detector finds in it what it finds in the single ones."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from model.data.voc import read_voc
from service.api.selection import Selection
from service.api.tiles import Tiling, merge
from service.devices.detector import Detections, Detector
from service.devices.loading import load_detectors
from service.settings import Settings

pytestmark = pytest.mark.reliability
HEIGHT, WIDTH = 480, 640
ROWS, COLUMNS = 4, 4
SURE = Selection(score_threshold=0.5, max_detections=10_000)


class Mosaic(NamedTuple):
    """Pictures side by side, and the objects in them."""

    single: list[Tensor]
    pixels: Tensor
    boxes: Tensor
    labels: Tensor


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load_detectors(Settings(weights="bundled", device="cpu", precision="fp32", max_batch_size=1))[0]


def mosaic_of(folder: Path, detector: Detector) -> Mosaic:
    """The first pictures of the split that the detector was not trained on."""
    data, _ = read_voc(folder, "val", categories=detector.info.categories)
    chosen = [data[at] for at in range(len(data)) if data.size_hw(at) == (HEIGHT, WIDTH)][: ROWS * COLUMNS]
    pixels = torch.zeros((3, ROWS * HEIGHT, COLUMNS * WIDTH), dtype=torch.uint8)
    boxes = []
    for at, (picture, target) in enumerate(chosen):
        top, left = at // COLUMNS * HEIGHT, at % COLUMNS * WIDTH
        pixels[:, top : top + HEIGHT, left : left + WIDTH] = picture
        boxes.append(target["boxes"] + torch.tensor([left, top, left, top]))
    labels = torch.cat([target["labels"] for _, target in chosen])
    return Mosaic([picture for picture, _ in chosen], pixels, torch.cat(boxes), labels)


def moved(found: Detections, at: int) -> Detections:
    """What is found in a single picture, in the mosaic's pixels."""
    top, left = at // COLUMNS * HEIGHT, at % COLUMNS * WIDTH
    return Detections(found.boxes + np.array([left, top, left, top], np.float32), found.labels, found.scores)


def matched(mosaic: Mosaic, found: Detections) -> int:
    """How many objects have a detection of their class that overlaps them by half or more, each its own."""
    overlaps = box_iou(torch.from_numpy(found.boxes).double(), mosaic.boxes.double())
    overlaps[torch.from_numpy(found.labels)[:, None] != mosaic.labels] = 0
    free = torch.ones(len(mosaic.labels), dtype=torch.bool)
    for row in overlaps:
        best = (row * free).argmax()
        if row[best] >= 0.5:
            free[best] = False
    return int((~free).sum())


def test_recall_in_tiles_is_that_of_single_pictures(bccd: Path, detector: Detector) -> None:
    mosaic = mosaic_of(bccd, detector)

    def look(pixels: Tensor) -> Detections:
        return SURE.apply(detector.detect([pixels])[0])

    def look_in_tiles() -> Detections:
        size_hw = (ROWS * HEIGHT, COLUMNS * WIDTH)
        parts = Tiling(HEIGHT).parts(size_hw, most=128)
        found = [
            detector.detect([mosaic.pixels[:, y1:y2, x1:x2]])[0] for x1, y1, x2, y2 in (part.xyxy for part in parts)
        ]
        return SURE.apply(merge(parts, found, size_hw, iou_threshold=detector.info.iou_threshold))

    alone = [moved(look(picture), at) for at, picture in enumerate(mosaic.single)]
    single = sum(matched(mosaic, found) for found in alone)
    tiled, whole = look_in_tiles(), look(mosaic.pixels)
    in_tiles, as_whole = matched(mosaic, tiled), matched(mosaic, whole)
    surplus = len(tiled.scores) - in_tiles, sum(len(found.scores) for found in alone) - single
    print(
        f"RECORD tiles: of {len(mosaic.labels)} objects {single} alone, {in_tiles} in tiles, {as_whole} as a whole; "
        f"surplus detections {surplus[0]} in tiles, {surplus[1]} alone"
    )
    assert in_tiles >= 0.97 * single
    assert as_whole < 0.5 * in_tiles
