from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from model.inference.calibration import calibration_pictures
from model.inference.errors import CalibrationError


def test_calibration_pictures_are_spread_over_a_folder(tmp_path: Path) -> None:
    for index in range(10):
        Image.new("L", (20, 10), index).save(tmp_path / f"{index}.png")
    (tmp_path / "5.png").write_bytes(b"not a picture")
    (tmp_path / "notes.txt").write_text("none either")
    found = calibration_pictures(tmp_path, count=4)  # 0, 3, 6 and 9
    assert [int(picture[0, 0, 0]) for picture in found] == [0, 3, 6, 9]
    assert all(picture.shape == (3, 10, 20) and picture.dtype == torch.uint8 for picture in found)
    assert len(calibration_pictures(tmp_path)) == 9


def test_a_folder_without_pictures_is_told(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no readable pictures"):
        calibration_pictures(tmp_path)
    with pytest.raises(CalibrationError, match="there is no folder"):
        calibration_pictures(tmp_path / "absent")
