"""Labelled data of one image, and detections in it."""

from __future__ import annotations

import torch
from torch import Tensor

from model.boxes import box_area
from model.structures import Detection, SizeHW, Target
from model.weights.categories import Categories


class Listed:
    """One 200x200 image with the boxes given."""

    def __init__(self, boxes: list[list[float]], labels: list[int], crowd: list[list[float]] | None = None) -> None:
        self.categories = Categories.of_objects(["cat", "dog"])
        self._target = Target(boxes=torch.tensor(boxes).reshape(-1, 4), labels=torch.tensor(labels))
        self._crowd = torch.tensor(crowd or []).reshape(-1, 4)

    def __len__(self) -> int:
        return 1

    def name(self, index: int) -> str:
        return "image.jpg"

    def size_hw(self, index: int) -> SizeHW:
        return 200, 200

    def crowd_boxes(self, index: int) -> tuple[Tensor, Tensor]:
        return self._crowd, torch.ones(len(self._crowd), dtype=torch.int64)

    def target(self, index: int) -> Target:
        return self._target

    def areas(self, index: int) -> Tensor:
        return box_area(self._target["boxes"])

    def fingerprint(self) -> str:
        return "one image"

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return torch.zeros(3, 200, 200, dtype=torch.uint8), self._target


def found(boxes: list[list[float]], labels: list[int], scores: list[float]) -> list[Detection]:
    return [
        Detection(
            boxes=torch.tensor(boxes).reshape(-1, 4),
            labels=torch.tensor(labels, dtype=torch.int64),
            scores=torch.tensor(scores),
        )
    ]


TWO = [[10.0, 10.0, 30.0, 30.0], [50.0, 50.0, 170.0, 170.0]]
