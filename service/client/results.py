"""What the service found, and the forms that other tools want it in.

N detections, best first. Arrays cannot be written to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from service.client.errors import AnswerError, MissingPackageError
from service.client.timing import Timing

if TYPE_CHECKING:
    import pandas as pd
    import supervision as sv

BoxFormat = Literal["xyxy", "xywh", "cxcywh"]


class Detection(NamedTuple):
    """One object: its box in the result's own format, class id, class name and score."""

    box: tuple[float, float, float, float]
    label: int
    name: str
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class DetectionResult:
    """The detections in one image.

    Args:
        boxes: float64 `[N, 4]` in `box_format`, in pixels of the upright image, or in fractions of it if `normalized`.
        labels: int64 `[N]`, class ids.
        scores: float64 `[N]` in 0..1, falling.
        names: the classes' names.
        width, height: of the image, in pixels.
        model, weights: what found them.
        version: of the weights: two results of one version come from the same file.
        box_format, normalized: what the boxes' numbers mean.
        timing: where the time went.
        request_id: finds the request in the service's log.
    """

    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    names: tuple[str, ...]
    width: int
    height: int
    model: str
    weights: str
    version: str
    box_format: BoxFormat = "xyxy"
    normalized: bool = False
    timing: Timing = field(default_factory=Timing)
    request_id: str | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Detection]:
        boxes = map(tuple, self.boxes.tolist())
        return map(Detection, boxes, self.labels.tolist(), self.names, self.scores.tolist())

    def xyxy(self) -> npt.NDArray[np.float64]:
        """`[N, 4]` corners in pixels, whatever format was asked for."""
        boxes = self.boxes.copy()
        if self.normalized:
            boxes *= (self.width, self.height, self.width, self.height)
        if self.box_format == "cxcywh":
            boxes[:, :2] -= boxes[:, 2:] / 2
        if self.box_format != "xyxy":
            boxes[:, 2:] += boxes[:, :2]
        return boxes

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO's result JSON: a list of `image_id`, `category_id`, `bbox` (x, y, width, height in pixels), `score`.

        The category ids are the model's class ids: COCO's own for COCO_V1.
        """
        corners = self.xyxy()
        boxes = np.hstack((corners[:, :2], corners[:, 2:] - corners[:, :2])).round(4)
        return [
            {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
            for label, box, score in zip(self.labels.tolist(), boxes.tolist(), self.scores.tolist(), strict=True)
        ]

    def to_supervision(self) -> sv.Detections:
        """`supervision.Detections`, with the names as `data["class_name"]`.

        Raises:
            MissingPackageError: supervision is not installed.
        """
        try:
            import supervision as sv
        except ImportError as error:
            raise _missing("to_supervision", "supervision") from error
        return sv.Detections(
            xyxy=self.xyxy().astype(np.float32),
            confidence=self.scores.astype(np.float32),
            class_id=self.labels.copy(),
            data={"class_name": np.array(self.names, dtype=np.str_)},
        )

    def to_pandas(self) -> pd.DataFrame:
        """A row for each detection: x1, y1, x2, y2 in pixels, label, name, score.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise _missing("to_pandas", "pandas") from error
        x1, y1, x2, y2 = self.xyxy().T
        columns = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
        return pd.DataFrame({**columns, "label": self.labels, "name": list(self.names), "score": self.scores})


def from_json(
    body: Any,
    *,
    box_format: BoxFormat = "xyxy",
    normalized: bool = False,
    headers: Mapping[str, str] | None = None,
) -> DetectionResult:
    """The result in an answer of `/detect`.

    Raises:
        AnswerError: it is not one.
    """
    headers = headers or {}
    try:
        return DetectionResult(
            boxes=_frozen(np.array(body["boxes"], dtype=np.float64).reshape(-1, 4)),
            labels=_frozen(np.array(body["labels"], dtype=np.int64)),
            scores=_frozen(np.array(body["scores"], dtype=np.float64)),
            names=tuple(body["label_names"]),
            width=body["image"]["width"],
            height=body["image"]["height"],
            model=body["model"]["name"],
            weights=body["model"]["weights"],
            version=body["model"]["version"],
            box_format=box_format,
            normalized=normalized,
            timing=Timing.parse(headers.get("server-timing", "")),
            request_id=headers.get("x-request-id"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AnswerError(f"the answer is not what /detect gives ({error!r}); is this the right address?") from error


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.setflags(write=False)
    return array


def _missing(method: str, package: str) -> MissingPackageError:
    return MissingPackageError(f"{method} needs {package}: pip install {package}")
