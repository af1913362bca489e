"""From what the command line calls data to images with boxes."""

from __future__ import annotations

from pathlib import Path

from model.data.coco import read_coco_data
from model.data.report import Report
from model.data.samples import DataError, DetectionData
from model.data.synthetic import SyntheticData
from model.data.voc import read_voc
from model.data.voc_places import is_voc
from model.weights.categories import Categories
from model.weights.names import SYNTHETIC, no_such_data

_SYNTHETIC_COUNTS = {"train": 200, "val": 50}


def open_data(
    source: str,
    split: str,
    *,
    categories: Categories | None = None,
    keep_empty: bool = False,
    seed: int = 0,
    whole: bool = False,
    images: Path | None = None,
) -> tuple[DetectionData, Report]:
    """The images of a split, and the account of those left out.

    Args:
        source: "synthetic", a Pascal VOC folder, a folder with COCO JSON and images, or such a JSON.
        categories: what the labels mean; by default what the data themselves say.
        keep_empty: keep images without boxes.
        seed: of the synthetic pictures.
        whole: data without splits are used whole, as this split.
        images: where a COCO JSON's images lie, if neither beside it nor below.

    Raises:
        DataError: there are no such data, or nothing in them can be used.
    """
    if source == SYNTHETIC:
        return _synthetic(split, seed)
    path = Path(source)
    if not path.exists():
        raise DataError(no_such_data(source))
    if path.is_dir() and is_voc(path):
        return read_voc(path, split, categories=categories, keep_empty=keep_empty, whole=whole)
    return read_coco_data(path, split, categories=categories, keep_empty=keep_empty, whole=whole, images=images)


def _synthetic(split: str, seed: int) -> tuple[DetectionData, Report]:
    if split not in _SYNTHETIC_COUNTS:
        raise DataError(f"the synthetic data have the splits {', '.join(_SYNTHETIC_COUNTS)}, not {split!r}")
    data = SyntheticData(split, count=_SYNTHETIC_COUNTS[split], seed=seed)
    return data, Report(f"{SYNTHETIC} {split}, drawn as needed", used_images=len(data))
