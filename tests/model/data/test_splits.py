from __future__ import annotations

from pathlib import PurePath

import pytest

from model.data.splits import split_names, split_of


def test_a_split_has_several_names() -> None:
    assert split_names("val") == ("val", "valid", "validation")
    assert split_names("dev") == ("dev",)


@pytest.mark.parametrize(
    ("folder", "split"),
    [("train", "train"), ("a/Valid/images", "val"), ("testing", "test"), (".", None), ("trains", None)],
)
def test_a_folder_is_named_for_a_split(folder: str, split: str | None) -> None:
    assert split_of(PurePath(folder)) == split
