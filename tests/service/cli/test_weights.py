from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from model.build import fasterrcnn_resnet50_fpn
from model.weights.checkpoints import read_checkpoint
from tests.support.commands import invoke


def test_weights_list_and_inspect() -> None:
    listed = invoke("weights", "list").stdout
    assert "COCO_V1   of fasterrcnn_resnet50_fpn, " in listed
    assert "COCO_V1   of fasterrcnn_resnet50_fpn_v2, " in listed
    assert "/fasterrcnn_resnet50_fpn_v2_coco-" in listed
    result = invoke("weights", "inspect", "random", "--model", "fasterrcnn_resnet50_fpn_v2")
    assert result.exit_code == 0
    assert "model       fasterrcnn_resnet50_fpn_v2" in result.stdout
    assert "fits        yes" in result.stdout
    assert "80: person, bicycle" in result.stdout


def test_the_classes_of_foreign_weights_are_named_in_a_file(tmp_path: Path) -> None:
    foreign, named = tmp_path / "foreign.pth", tmp_path / "named.safetensors"
    model = fasterrcnn_resnet50_fpn(num_classes=3)
    torch.save(model.state_dict(), foreign)
    rejected = invoke("weights", "pack", foreign, named, "--class-names", "cat,dog,bird")
    assert rejected.exit_code == 1
    assert not named.exists()
    done = invoke("weights", "pack", foreign, named, "--class-names", "cat, dog")
    assert done.exit_code == 0, done.output
    checkpoint = read_checkpoint(named)
    assert checkpoint.categories.objects() == {1: "cat", 2: "dog"}
    given = model.state_dict()
    assert all(torch.equal(tensor, given[key]) for key, tensor in checkpoint.state_dict.items())
    # Or on the command line, each time.
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    words = ("detect", tmp_path / "a.png", "--weights", foreign, "--class-names")
    assert "has 2 classes besides the background" in invoke(*words, "cat").stderr
    assert invoke(*words, "cat,dog", "--labels", "dog").exit_code == 0
    assert "unicorn" in invoke(*words, "cat,dog", "--labels", "unicorn").stderr
