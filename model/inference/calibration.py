"""Pictures that show a quantiser how large activations get."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from model.data.image_files import IMAGE_ENDINGS, files_below, is_image
from model.data.samples import DataError, read_image
from model.data.synthetic import SyntheticData
from model.inference.errors import CalibrationError

PICTURES = 16
_SEED = 1


def calibration_pictures(folder: Path | None = None, count: int = PICTURES) -> list[Tensor]:
    """uint8 `[3, H, W]` pictures: up to `count` spread over a folder, or generated smears of blood cells without one.

    Raises:
        CalibrationError: the folder has no readable pictures.
    """
    if folder is None:
        data = SyntheticData("train", count=count, seed=_SEED)
        return [data[index][0] for index in range(count)]
    if not folder.is_dir():
        raise CalibrationError(f"there is no folder {folder} with pictures to calibrate on")
    paths = [path for path in files_below(folder) if is_image(path)]
    chosen = [paths[round(index)] for index in torch.linspace(0, len(paths) - 1, min(count, len(paths))).tolist()]
    pictures = [picture for path in chosen if (picture := _read(path)) is not None]
    if not pictures:
        raise CalibrationError(f"{folder} has no readable pictures ({', '.join(IMAGE_ENDINGS)}) to calibrate on")
    return pictures


def _read(path: Path) -> Tensor | None:
    try:
        return read_image(path)
    except DataError:
        return None  # one broken picture of many is no reason to stop
