"""Choosing among the detections of one picture.

D detections, best first; boxes xyxy in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torchvision.ops import batched_nms, nms

from service.devices.detector import Detections


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which detections a caller wants. Choosing among a batch's answers costs little, so it never splits a batch.

    Args:
        score_threshold: least score of a class that has no threshold of its own.
        class_thresholds: least scores by label.
        labels: the classes that are wanted; None for all.
        iou_threshold: overlap above which the lower of two detections is dropped; None where the model has done all.
        class_agnostic: whether detections of different classes drop each other.
        max_detections: most that are kept.
    """

    score_threshold: float = 0.0
    class_thresholds: Mapping[int, float] = field(default_factory=dict)
    labels: frozenset[int] | None = None
    iou_threshold: float | None = None
    class_agnostic: bool = False
    max_detections: int = 100

    def apply(self, found: Detections) -> Detections:
        """Keep what is wanted, best first. What is not wanted drops nothing else."""
        if (self.score_threshold > 0 or self.class_thresholds) and len(found.scores):
            found = take(found, found.scores >= self._thresholds(found.labels))
        if self.labels is not None:
            found = take(found, np.isin(found.labels, list(self.labels)))
        if self.iou_threshold is not None:
            found = suppress(found, iou_threshold=self.iou_threshold, class_agnostic=self.class_agnostic)
        if len(found.scores) > self.max_detections:
            found = take(found, np.arange(self.max_detections))
        return found

    def _thresholds(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The least score of each detection, in the precision of scores."""
        thresholds = np.full(labels.shape, self.score_threshold, dtype=np.float32)
        for label, threshold in self.class_thresholds.items():
            thresholds[labels == label] = threshold
        return thresholds


def take(found: Detections, which: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Detections:
    """Those detections that a mask or indices name."""
    return Detections(boxes=found.boxes[which], labels=found.labels[which], scores=found.scores[which])


def suppress(found: Detections, *, iou_threshold: float, class_agnostic: bool = False) -> Detections:
    """Drop each detection that overlaps a better one too much: non-maximum suppression.

    Args:
        found: best first.
        iou_threshold: intersection over union above which the lower of two is dropped.
        class_agnostic: across classes; by default within each.
    """
    boxes, scores = torch.from_numpy(found.boxes.astype(np.float64)), torch.from_numpy(found.scores.astype(np.float64))
    if class_agnostic:
        kept = nms(boxes, scores, iou_threshold)
    else:
        kept = batched_nms(boxes, scores, torch.from_numpy(found.labels.astype(np.int64)), iou_threshold)
    return take(found, np.sort(kept.numpy()))
