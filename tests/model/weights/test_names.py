from __future__ import annotations

from pathlib import Path

import pytest

from model.weights.names import argument_error


@pytest.mark.parametrize("weights", ["auto", "COCO_V1", "bundled", "random", None])
def test_names_are_no_files(weights: str | None) -> None:
    assert argument_error(weights=weights) is None
    assert argument_error(weights=weights, data="synthetic") is None


def test_what_is_missing_is_named_before_anything_is_imported(tmp_path: Path) -> None:
    there = tmp_path / "w.pth"
    there.touch()
    assert argument_error(weights=str(there), data=str(tmp_path)) is None
    assert "gone.pth" in str(argument_error(weights=str(tmp_path / "gone.pth")))
    assert "no-data" in str(argument_error(weights=str(there), data=str(tmp_path / "no-data")))


@pytest.mark.parametrize("weights", ["coco_v1", "COCO_V9"])
def test_a_misspelt_name_is_told_with_the_names_that_there_are(weights: str) -> None:
    told = str(argument_error(weights=weights))
    assert weights in told
    assert "COCO_V1" in told
