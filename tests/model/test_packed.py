from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.build import fasterrcnn_resnet50_fpn
from model.packed import pack, relative_error, unpack
from model.weights import (
    BUNDLED_PATH,
    CheckpointInfo,
    WeightsError,
    bundled_is_present,
    read_bundled,
    read_checkpoint,
    save_checkpoint,
)

INFO = CheckpointInfo(class_names=("__background__", "cell"), model_kwargs={"min_size": 240})


def test_vectors_are_exact_and_weights_within_half_a_step() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(8, 4, 3, 3), torch.randn(8)
    tensors, info = unpack(pack({"weight": weight, "bias": bias}, {"a": 1}, step=0.125))
    step = weight.flatten(1).std(dim=1, correction=0) * 0.125
    assert info == {"a": 1}
    assert tensors["bias"].equal(bias)
    assert tensors["weight"].shape == weight.shape
    assert ((tensors["weight"] - weight).abs().flatten(1) <= 0.5001 * step[:, None]).all()


def test_an_outlier_widens_its_channels_step_and_survives() -> None:
    weight = torch.full((2, 1000), 0.01)
    weight[0, 0] = 50.0
    tensors, _ = unpack(pack({"weight": weight}, {}))
    assert tensors["weight"][0, 0].item() == pytest.approx(50.0)
    assert tensors["weight"][1, 0].item() == pytest.approx(0.01, rel=0.01)


def test_a_channel_of_zeros_stays_zero() -> None:
    tensors, _ = unpack(pack({"weight": torch.zeros(3, 5)}, {}))
    assert tensors["weight"].equal(torch.zeros(3, 5))


def test_the_size_follows_from_the_step() -> None:
    torch.manual_seed(0)
    state_dict = {"weight": torch.randn(256, 2304)}
    content = pack(state_dict, {}, step=0.125)
    # The entropy of a normal distribution in steps of an eighth: log2(8 * sqrt(2 * pi * e)) = 5.05 bits.
    assert 8 * len(content) / (256 * 2304) == pytest.approx(5.05, abs=0.15)
    assert relative_error(state_dict, unpack(content)[0]) == pytest.approx(0.125 / 12**0.5, rel=0.02)


@pytest.mark.parametrize("damage", [lambda b: b"x" + b, lambda b: b[:-20], lambda b: b[:30], lambda b: b""])
def test_a_broken_file_says_so(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "a.frcnn"
    assert callable(damage)
    path.write_bytes(damage(pack({"weight": torch.randn(4, 100)}, {})))
    with pytest.raises(WeightsError, match=r"not a readable \.frcnn file"):
        read_checkpoint(path)


def test_a_packed_checkpoint_carries_its_info(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state_dict = {"conv.weight": torch.randn(8, 4, 3, 3), "norm.bias": torch.randn(8)}
    path = tmp_path / "small.frcnn"
    save_checkpoint(path, state_dict | {"norm.num_batches_tracked": torch.tensor(3)}, INFO, packing_step=0.05)
    checkpoint = read_checkpoint(path)
    assert checkpoint.name == "small.frcnn"
    assert checkpoint.info == INFO
    assert checkpoint.state_dict.keys() == state_dict.keys()
    assert relative_error(state_dict, checkpoint.state_dict) < 0.02


@pytest.mark.skipif(not bundled_is_present(), reason="the bundled weights are not built")
def test_the_bundled_weights_are_small_and_a_whole_detector() -> None:
    assert BUNDLED_PATH.stat().st_size <= 30e6
    checkpoint = read_bundled()
    assert checkpoint.name == "bundled"
    assert set(checkpoint.categories.objects().values()) == {"RBC", "WBC", "Platelets"}
    model = fasterrcnn_resnet50_fpn(weights="bundled")
    assert model.transform.min_size == (checkpoint.info.model_kwargs["min_size"],)
