from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image

from model.data.sources import open_data
from model.data.synthetic import SyntheticData
from tests.support.commands import QUICK, invoke


def test_samples_are_data_to_train_and_evaluate_on(tmp_path: Path) -> None:
    drawn = invoke("sample", "--output", tmp_path / "in", "--count", 3, "--width", 160, "--height", 120)
    assert drawn.exit_code == 0, drawn.output
    with Image.open(tmp_path / "in" / "sample_1.jpg") as picture:
        assert picture.size == (160, 120)
    data, _ = open_data(str(tmp_path / "in"), "all")
    drawn_from = SyntheticData("test", count=3, size_hw=(120, 160))
    assert data.categories.names == drawn_from.categories.names
    for index in range(3):
        torch.testing.assert_close(data[index][1]["boxes"], drawn_from[index][1]["boxes"])
        assert data[index][1]["labels"].tolist() == drawn_from[index][1]["labels"].tolist()
    words = ("train", "--data", tmp_path / "in", "--output", tmp_path / "out", "--iterations", 1, *QUICK)
    trained = invoke(*words, "--validation-split", "none")
    assert trained.exit_code == 0, trained.output
    weights = tmp_path / "out" / "best.safetensors"
    measured = invoke("evaluate", "--weights", weights, "--data", tmp_path / "in", "--split", "all", "--json")
    assert json.loads(measured.stdout)["images"] == 3
