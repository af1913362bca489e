from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.api.query import TiledQuery
from service.cli.detect_files import FileResult, as_json, as_text, detect_files, save_drawn
from service.images.files import image_files
from tests.support.fakes import FakeDetector

MOST = 10_000


def results(folder: Path, **query: object) -> list[FileResult]:
    detector = FakeDetector()
    selection = TiledQuery.model_validate(query).selection(detector.info)
    return list(detect_files(detector, image_files([folder]), selection, max_pixels=MOST))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, a broken one, and one that is too large."""
    for number, name in enumerate(("a.png", "b.jpg")):
        Image.new("RGB", (40, 32), (10 * number, 0, 0)).save(tmp_path / name, quality=100)
    (tmp_path / "c.png").write_bytes(b"no image")
    Image.new("RGB", (200, 100)).save(tmp_path / "d.png")
    return tmp_path


def test_each_file_has_its_result_or_its_error_in_order(folder: Path) -> None:
    first, second, broken, large = results(folder)
    assert [result.file.path.name for result in (first, second, broken, large)] == ["a.png", "b.jpg", "c.png", "d.png"]
    assert first.detections is not None
    np.testing.assert_array_equal(first.detections.boxes, FakeDetector.expected(0).boxes)
    assert second.error is None
    assert broken.detections is large.detections is None
    assert "not an image" in str(broken.error)
    assert "200 x 100 pixels; at most 10,000" in str(large.error)


def test_a_result_is_a_line_and_one_for_each_detection(folder: Path) -> None:
    first, _, broken, _ = results(folder)
    assert as_text(first, FakeDetector()).splitlines() == [
        f"{folder / 'a.png'}: 2 detections",
        "  person 0.90  x 0 to 4, y 1 to 9",
        "  dog 0.30     x 2 to 12, y 3 to 23",
    ]
    assert as_text(broken, FakeDetector()) == f"{folder / 'c.png'}: {broken.error}"
    [one, *_] = results(folder, score_threshold=0.5)
    assert as_text(one, FakeDetector()).startswith(f"{folder / 'a.png'}: 1 detection\n")


def test_a_result_as_json_is_that_of_the_service_with_its_file(folder: Path) -> None:
    first, _, broken, _ = results(folder)
    query = TiledQuery()
    document = as_json(first, query, FakeDetector())
    assert document["file"] == str(folder / "a.png")
    assert document["label_names"] == ["person", "dog"]
    assert document["image"] == {"width": 40, "height": 32}
    assert as_json(broken, query, FakeDetector()) == {"file": str(folder / "c.png"), "error": broken.error}


def test_a_drawn_picture_overwrites_nothing(folder: Path, tmp_path: Path) -> None:
    first, second, _, _ = results(folder)
    out = tmp_path / "drawn"
    names = [save_drawn(result, FakeDetector(), out).name for result in (first, first, first, second)]
    assert names == ["a.png", "a-2.png", "a-3.png", "b.jpg"]
    drawn = np.asarray(Image.open(out / "a.png"))
    assert drawn.shape == (32, 40, 3)
    assert drawn.any()  # the picture was black
