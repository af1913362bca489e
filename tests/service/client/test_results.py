from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from service.client import DetectionResult
from service.client.results import from_json

BODY = {
    "boxes": [[10, 20, 40, 60], [0, 0, 8, 4]],
    "labels": [18, 1],
    "scores": [0.75, 0.5],
    "label_names": ["dog", "person"],
    "image": {"width": 80, "height": 100},
    "model": {"name": "m", "weights": "w", "version": "0123456789ab"},
}
FORMATS = {
    ("xyxy", False): [10, 20, 40, 60],
    ("xywh", False): [10, 20, 30, 40],
    ("cxcywh", False): [25, 40, 30, 40],
    ("xyxy", True): [0.125, 0.2, 0.5, 0.6],
    ("cxcywh", True): [0.3125, 0.4, 0.375, 0.4],
}


def result() -> DetectionResult:
    return from_json(BODY)


@pytest.mark.parametrize(("box_format", "normalized"), FORMATS)
def test_corners_in_pixels_from_every_format(box_format: Any, normalized: bool) -> None:
    body = {**BODY, "boxes": [FORMATS[box_format, normalized]] * 2}
    asked = from_json(body, box_format=box_format, normalized=normalized)
    assert asked.xyxy()[1] == pytest.approx([10, 20, 40, 60])
    assert asked.to_coco(3)[0]["bbox"] == pytest.approx([10, 20, 30, 40])


def test_it_cannot_be_changed() -> None:
    found = result()
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.width = 1  # type: ignore[misc]
    for array in (found.boxes, found.labels, found.scores):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    found.xyxy()[0] = 0
    assert found.boxes[0, 0] == 10


def test_one_by_one() -> None:
    first, second = result()
    assert first == ((10, 20, 40, 60), 18, "dog", 0.75)
    assert second.name == "person"
    assert len(result()) == 2


def test_coco() -> None:
    assert result().to_coco(7) == [
        {"image_id": 7, "category_id": 18, "bbox": [10, 20, 30, 40], "score": 0.75},
        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 8, 4], "score": 0.5},
    ]


def test_supervision() -> None:
    sv = pytest.importorskip("supervision")
    found = result().to_supervision()
    assert isinstance(found, sv.Detections)
    assert found.xyxy.tolist() == BODY["boxes"]
    assert found.class_id.tolist() == [18, 1]
    assert found.confidence.tolist() == [0.75, 0.5]
    assert found["class_name"].tolist() == ["dog", "person"]
    assert len(found.with_nms(0.5)) == 2


def test_pandas() -> None:
    pytest.importorskip("pandas")
    table = result().to_pandas()
    assert list(table.columns) == ["x1", "y1", "x2", "y2", "label", "name", "score"]
    assert table.iloc[0].tolist() == [10, 20, 40, 60, 18, "dog", 0.75]


def test_nothing_found_converts_too() -> None:
    empty = from_json({**BODY, "boxes": [], "labels": [], "scores": [], "label_names": []})
    assert empty.boxes.shape == (0, 4)
    assert (empty.to_coco(1), list(empty)) == ([], [])
    if "pandas" in sys.modules:
        assert empty.to_pandas().empty
    if "supervision" in sys.modules:
        assert empty.to_supervision().is_empty()


@pytest.mark.parametrize("package", ["pandas", "supervision"])
def test_a_missing_package_is_named(package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from service.client import MissingPackageError\n"
        "from service.client.results import from_json\n"
        f"try: from_json({BODY!r}).to_{package}()\n"
        "except MissingPackageError as error: print(error)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert f"pip install {package}" in shown.stdout


def test_types_of_the_arrays() -> None:
    found = result()
    assert [str(array.dtype) for array in (found.boxes, found.labels, found.scores)] == ["float64", "int64", "float64"]
