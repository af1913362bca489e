"""Large pictures in parts: where the tiles lie, and one picture's detections from those of its parts.

D detections, best first; boxes xyxy in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torchvision.ops import box_iou

from service.api.selection import suppress, take
from service.devices.detector import Detections
from service.errors import BadParameterError
from service.images.pictures import Region

Mask = npt.NDArray[np.bool_]

# A box that ends so near to a tile's edge is taken for cut by it: the detector's own corners are off by about as much.
_NEAR = 0.02  # of the tile's side


class Tiling(NamedTuple):
    """How to divide a picture.

    Attributes:
        side: of a tile in pixels.
        overlap: least share of its side that a tile has in common with the next.
        whole: whether the picture as a whole is one of the parts, too.
    """

    side: int
    overlap: float = 0.2
    whole: bool = True

    def parts(self, size_hw: tuple[int, int], *, most: int) -> list[Region]:
        """Divide a picture into tiles of one size, evenly. One that is no larger than a tile is the only part.

        Raises:
            BadParameterError: there would be more than `most` parts.
        """
        height, width = size_hw
        everything = Region(0, 0, width, height)
        if max(size_hw) <= self.side:
            return [everything]
        columns, rows = self._count(width), self._count(height)
        count = columns * rows + self.whole
        if count > most:
            raise BadParameterError(
                f"tile: {width} x {height} pixels would be {count:,} pictures in tiles of {self.side} px, and at most "
                f"{most:,} are taken; ask for larger tiles or less overlap"
            )
        tile_width, tile_height = min(self.side, width), min(self.side, height)
        tiles = [
            Region(left, top, tile_width, tile_height)
            for top in _starts(height - tile_height, rows)
            for left in _starts(width - tile_width, columns)
        ]
        return [*tiles, everything] if self.whole else tiles

    def _count(self, length: int) -> int:
        """How many tiles are needed along a side of the picture."""
        stride = max(1, math.floor(self.side * (1 - self.overlap)))
        return 1 + max(0, math.ceil((length - self.side) / stride))


def _starts(last: int, count: int) -> list[int]:
    return [round(at * last / max(count - 1, 1)) for at in range(count)]


def merge(
    parts: Sequence[Region], found: Sequence[Detections], size_hw: tuple[int, int], *, iou_threshold: float
) -> Detections:
    """Put the detections of a picture's parts together.

    1. A box that a tile's edge cuts gives way to the whole one of its class from another part, whatever their scores:
       to one that, clipped to the tile, overlaps it by more than the threshold.
    2. The rest goes through non-maximum suppression within each class.

    Args:
        parts: of the picture.
        found: in each of them, in its own pixels.
        size_hw: of the picture.
        iou_threshold: overlap above which two boxes are of the same object.

    Returns:
        The detections in the picture's pixels.
    """
    offsets = [np.array([part.left, part.top] * 2, dtype=np.float32) for part in parts]
    moved = [
        Detections(boxes=one.boxes + offset, labels=one.labels, scores=one.scores)
        for one, offset in zip(found, offsets, strict=True)
    ]
    cut = [_cut(one.boxes, part, size_hw) for one, part in zip(moved, parts, strict=True)]
    whole = _together([take(one, ~is_cut) for one, is_cut in zip(moved, cut, strict=True)])
    kept = [
        take(one, ~(is_cut & _shown_whole(one, part, whole, iou_threshold)))
        for one, part, is_cut in zip(moved, parts, cut, strict=True)
    ]
    everything = _together(kept)
    best_first = np.argsort(-everything.scores, kind="stable")
    return suppress(take(everything, best_first), iou_threshold=iou_threshold)


def _cut(boxes: npt.NDArray[np.float32], part: Region, size_hw: tuple[int, int]) -> Mask:
    """Which boxes end at an edge of their part, `[D]`; the picture's own edges cut nothing."""
    height, width = size_hw
    left, top, right, bottom = part.xyxy
    near = _NEAR * max(part.width, part.height)
    x1, y1, x2, y2 = boxes.T
    cut: Mask = (
        ((left > 0) & (x1 - left < near))
        | ((top > 0) & (y1 - top < near))
        | ((right < width) & (right - x2 < near))
        | ((bottom < height) & (bottom - y2 < near))
    )
    return cut


def _shown_whole(found: Detections, part: Region, whole: Detections, iou_threshold: float) -> Mask:
    """Which of a part's detections show what one of the whole ones shows, `[D]`."""
    left, top, right, bottom = part.xyxy
    clipped = whole.boxes.clip((left, top, left, top), (right, bottom, right, bottom))
    visible = (clipped[:, 0] < clipped[:, 2]) & (clipped[:, 1] < clipped[:, 3])
    overlaps = box_iou(_tensor(found.boxes), _tensor(clipped[visible])).numpy()
    alike = (overlaps > iou_threshold) & (found.labels[:, None] == whole.labels[visible])
    shown: Mask = alike.any(axis=1)
    return shown


def _tensor(boxes: npt.NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(boxes.astype(np.float64))


def _together(several: Sequence[Detections]) -> Detections:
    return Detections(
        boxes=np.concatenate([one.boxes for one in several]),
        labels=np.concatenate([one.labels for one in several]),
        scores=np.concatenate([one.scores for one in several]),
    )
