"""Mean average precision by COCO's rules, counted by faster-coco-eval.

Glossary: T overlap thresholds 0.50, 0.55, ..., 0.95; R recall steps 0.00, 0.01, ..., 1.00; K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.boxes import box_area
from model.data.samples import INSTALL_EXTRA, DataError, DetectionData
from model.structures import Detection
from model.weights.categories import Categories

# COCO's bounds on area, in pixels of the original image.
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
_AREA_INDEX = {"all": 0, "small": 1, "medium": 2, "large": 3}
_IOU_INDEX = {0.5: 0, 0.75: 5}


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Average precisions of some boxes, 0..1; None where there is no such box to find."""

    ap: float | None  # mean over T
    ap50: float | None
    ap75: float | None
    recall: float | None  # mean over T of the largest recall, with up to 100 detections an image
    boxes: int


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What `evaluate` measures."""

    images: int
    overall: Precision
    by_class: dict[str, Precision]
    by_size: dict[str, Precision]
    curves: dict[str, list[float]]  # by class: precision at overlap 0.5 for each of the R recalls

    def as_json(self) -> dict[str, Any]:
        return {
            "AP": self.overall.ap,
            "AP50": self.overall.ap50,
            "AP75": self.overall.ap75,
            "AR": self.overall.recall,
            "images": self.images,
            "boxes": self.overall.boxes,
            "by_class": {name: asdict(precision) for name, precision in self.by_class.items()},
            "by_size": {name: asdict(precision) for name, precision in self.by_size.items()},
        }


@torch.inference_mode()
def detect_all(
    detect: Callable[[list[Tensor]], list[Detection]],
    data: DetectionData,
    *,
    advance: Callable[[], None] = lambda: None,
) -> list[Detection]:
    """The detections on every image, one image at a time, so that none is padded to its neighbour's size.

    Args:
        detect: uint8 images `[3, H, W]` to their detections.
        advance: called after each image.
    """
    detections = []
    for index in range(len(data)):
        found = detect([data[index][0]])[0]
        boxes, labels, scores = found["boxes"].cpu(), found["labels"].cpu(), found["scores"].cpu()
        detections.append(Detection(boxes=boxes, labels=labels, scores=scores))
        advance()
    return detections


def check_evaluator() -> None:
    """Notice before hours of training that what comes after them cannot be done.

    Raises:
        DataError: faster-coco-eval is not installed.
    """
    if find_spec("faster_coco_eval") is None:
        raise DataError(f"evaluation needs faster-coco-eval: {INSTALL_EXTRA}")


def evaluate(data: DetectionData, detections: Sequence[Detection], categories: Categories | None = None) -> Metrics:
    """Compare detections with the boxes of the data.

    Args:
        detections: one for each image.
        categories: what the detections' labels mean; by default the data's. Classes meet by name.

    Raises:
        DataError: the data have no class of the detector's.
    """
    own, theirs = data.categories.objects(), (categories or data.categories).objects()
    label_of = {name: label for label, name in own.items()}
    translation = {label: label_of[name] for label, name in theirs.items() if name in label_of}
    if not translation:
        raise DataError(
            f"the detector knows {', '.join(theirs.values())}; the data have {', '.join(own.values())}: no class has a "
            "name in common. Rename the classes in the data, or evaluate on the data it was trained for"
        )
    truth = _coco_truth(data)
    if not any(not annotation["iscrowd"] for annotation in truth["annotations"]):
        raise DataError("the data have no box to find")
    results = _coco_results(detections, translation)
    return _metrics(_count(truth, results), truth, own)


def _coco_truth(data: DetectionData) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(len(data)):
        height, width = data.size_hw(index)
        images.append({"id": index + 1, "height": height, "width": width})
        target = data.target(index)
        crowd_boxes, crowd_labels = data.crowd_boxes(index)
        for boxes, labels, areas, is_crowd in (
            (target["boxes"], target["labels"], data.areas(index), 0),
            (crowd_boxes, crowd_labels, box_area(crowd_boxes), 1),
        ):
            for xywh, area, label in zip(_xywh(boxes), areas.tolist(), labels.tolist(), strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index + 1,
                        "category_id": label,
                        "bbox": xywh,
                        "area": area,
                        "iscrowd": is_crowd,
                    }
                )
    categories = [{"id": label, "name": name} for label, name in data.categories.objects().items()]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _coco_results(detections: Sequence[Detection], translation: dict[int, int]) -> list[dict[str, Any]]:
    return [
        {"image_id": index + 1, "category_id": translation[label], "bbox": xywh, "score": score}
        for index, found in enumerate(detections)
        for xywh, label, score in zip(
            _xywh(found["boxes"]), found["labels"].tolist(), found["scores"].tolist(), strict=True
        )
        if label in translation
    ]


def _xywh(boxes: Tensor) -> list[list[float]]:
    return torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), dim=1).tolist()


def _count(truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, NDArray[np.float64]]:
    """`precision` [T, R, K, areas, limits] and `recall` [T, K, areas, limits], -1 where there is nothing to find."""
    check_evaluator()
    from faster_coco_eval import COCO, COCOeval_faster  # here: serving, and training without validation, do without it

    if not results:
        # The evaluator takes no empty list, though finding nothing is an answer: precision and recall are 0.
        labels = [category["id"] for category in truth["categories"]]
        nothing = np.full((len(labels), len(_AREA_INDEX), 1), -1.0)
        for annotation in truth["annotations"]:
            for size, column in _AREA_INDEX.items():
                if not annotation["iscrowd"] and _is_of_size(annotation["area"], size):
                    nothing[labels.index(annotation["category_id"]), column] = 0.0
        return {
            "precision": np.broadcast_to(nothing, (10, 101, len(labels), 4, 3)),
            "recall": np.broadcast_to(nothing, (10, len(labels), 4, 3)),
        }
    counted = COCO(truth)
    evaluator = COCOeval_faster(counted, counted.loadRes(results), iouType="bbox", print_function=_silent)
    evaluator.evaluate()
    evaluator.accumulate()
    return cast(dict[str, NDArray[np.float64]], evaluator.eval)


def _is_of_size(area: float, size: str) -> bool:
    low, high = SIZES.get(size, (0.0, math.inf))
    return low <= area <= high


def _silent(*_: object) -> None:
    """The evaluator reports its progress; the table says all."""


def _metrics(counted: dict[str, NDArray[np.float64]], truth: dict[str, Any], names: dict[int, str]) -> Metrics:
    labels = sorted(names)
    found = [annotation for annotation in truth["annotations"] if not annotation["iscrowd"]]

    def precision_of(classes: Sequence[int], size: str) -> Precision:
        columns = [labels.index(label) for label in classes]
        precision = counted["precision"][:, :, columns, _AREA_INDEX[size], -1]
        recall = counted["recall"][:, columns, _AREA_INDEX[size], -1]
        return Precision(
            ap=_mean(precision),
            ap50=_mean(precision[_IOU_INDEX[0.5]]),
            ap75=_mean(precision[_IOU_INDEX[0.75]]),
            recall=_mean(recall),
            boxes=sum(a["category_id"] in classes and _is_of_size(a["area"], size) for a in found),
        )

    return Metrics(
        images=len(truth["images"]),
        overall=precision_of(labels, "all"),
        by_class={names[label]: precision_of([label], "all") for label in labels},
        by_size={size: precision_of(labels, size) for size in SIZES},
        curves={
            names[label]: counted["precision"][0, :, column, 0, -1].tolist() for column, label in enumerate(labels)
        },
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    there = values[values > -1]
    return float(there.mean()) if there.size else None
