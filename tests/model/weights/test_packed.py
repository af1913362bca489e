from __future__ import annotations

import json
import lzma
import math
import struct
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.build import fasterrcnn_resnet50_fpn
from model.weights.checkpoints import (
    BUNDLED_PATH,
    CheckpointInfo,
    WeightsError,
    bundled_is_present,
    read_bundled,
    read_checkpoint,
    save_checkpoint,
)
from model.weights.packed import pack, unpack


def relative_error(state_dict: Mapping[str, Tensor], unpacked: Mapping[str, Tensor]) -> float:
    """Norm of all rounding errors over the norm of all weights."""
    wrong = sum(float((state_dict[key] - tensor).square().sum()) for key, tensor in unpacked.items())
    return math.sqrt(wrong / sum(float(tensor.square().sum()) for tensor in state_dict.values()))


def crafted(header: object, exact: bytes = b"", numbers: bytes = b"") -> bytes:
    """A file as `pack` writes it, with any header."""
    coded = lzma.compress(numbers, format=lzma.FORMAT_XZ)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return b"FRCNNPK1" + struct.pack("<QQ", len(text), len(exact)) + text + exact + coded


def listing(*shapes: object, key: object = "a") -> dict[str, object]:
    return {"info": {}, "tensors": [{"key": key, "shape": shape} for shape in shapes]}


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (crafted(b'{"info":{},"tensors":[{"key":"a","shape":[1e999]}]}'), "the shape"),
        (crafted(listing([-1])), "the shape"),
        (crafted(listing([2.0])), "the shape"),
        (crafted(listing([True])), "the shape"),
        (crafted(listing(3)), "the shape"),
        (crafted(listing([1], [1]), b"\0" * 8), "twice"),
        (crafted(listing([1], key=7), b"\0" * 4), "not by name"),
        (crafted(listing([2**62, 2**62])), "claims more than"),
        (crafted(b"[" * 200_000), "broken"),
        (crafted([]), "broken"),
        (crafted({"info": {}, "tensors": [7]}), "broken"),
        (crafted(listing(), numbers=b"\0" * 1000), "its length"),
        (crafted(listing([1, 4]), b"\0" * 4, b"\0" * 3), "its length"),
        (crafted(listing([1, 4]), b"", b"\0" * 4), "its length"),
        (b"FRCNNPK2" + b"x" * 100, "of version b'2'"),
        (b"PK\x03\x04" + b"x" * 100, "does not begin like"),
    ],
)
def test_a_crafted_file_says_what_is_wrong(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.frcnn"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(path)


def test_no_more_is_decoded_than_the_header_claims() -> None:
    content = crafted(listing(), numbers=bytes(64 << 20))
    tracemalloc.start()
    with pytest.raises(ValueError, match="its length"):
        unpack(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20  # the dictionary, and nothing of the 64 MB


def test_matrices_without_weights_are_kept() -> None:
    state_dict = {"a": torch.zeros(0, 4), "b": torch.zeros(3, 0), "c": torch.zeros(0), "d": torch.tensor(2.0)}
    tensors, _ = unpack(pack(state_dict, {}))
    assert {key: tensor.shape for key, tensor in tensors.items()} == {k: t.shape for k, t in state_dict.items()}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_cannot_be_rounded_is_rejected(tmp_path: Path, value: float) -> None:
    with pytest.raises(WeightsError, match="weight holds values"):
        save_checkpoint(tmp_path / "a.frcnn", {"weight": torch.tensor([[1.0, value]])}, INFO)
    assert list(tmp_path.iterdir()) == []


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
    assert model.roi_heads.vote_thresh == 0.8


def test_no_call_is_so_long_that_ctrl_c_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python handles a signal between two calls of native code."""
    sizes: list[int] = []

    class Compressor:
        def __init__(self, **how: Any) -> None:
            self._real = lzma_compressor(**how)

        def compress(self, content: bytes) -> bytes:
            sizes.append(len(content))
            return self._real.compress(content)

        def flush(self) -> bytes:
            return self._real.flush()

    class Decompressor:
        def __init__(self, **how: Any) -> None:
            self._real = lzma_decompressor(**how)

        def decompress(self, content: bytes, max_length: int) -> bytes:
            sizes.append(len(content))
            return self._real.decompress(content, max_length)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    lzma_compressor, lzma_decompressor = lzma.LZMACompressor, lzma.LZMADecompressor
    monkeypatch.setattr(lzma, "LZMACompressor", Compressor)
    monkeypatch.setattr(lzma, "LZMADecompressor", Decompressor)
    weight = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))
    content = pack({"weight": weight}, {})
    packing = len(sizes)
    state_dict, _ = unpack(content)
    assert state_dict["weight"].sub(weight).abs().max() <= 0.125 * 1.2 / 2
    assert (packing, len(sizes) - packing) == (4, 3)  # of a megabyte, and of the 0.66 MB that it is packed in
    assert max(sizes) <= 1 << 18
