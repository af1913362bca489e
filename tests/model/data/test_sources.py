from __future__ import annotations

from pathlib import Path

import pytest

from model.data.samples import DataError
from model.data.sources import open_data


def test_an_unknown_split_says_which_there_are() -> None:
    with pytest.raises(DataError, match="train, val"):
        open_data("synthetic", "dev")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (None, "no such data.*Pascal VOC"),
        ([], "Pascal VOC has .xml.*COCO a .json. It is empty"),
        (["images/a.jpg", "images/b.JPG", "labels.csv"], r"It has 2 x \.jpg in images, 1 x \.csv$"),
        (["images/a.jpg", "labels/a.txt", "data.yaml"], "1 x .txt in labels. Text files of YOLO are not read"),
    ],
)
def test_data_that_are_not_there_say_what_is_wanted_and_what_there_is(
    tmp_path: Path, names: list[str] | None, told: str
) -> None:
    path = tmp_path / "data"
    for name in [] if names is None else [".hidden", *names]:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"")
    with pytest.raises(DataError, match=told):
        open_data(str(path), "train")
