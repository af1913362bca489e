"""int8 by OpenVINO: what is calibrated, kept and found."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.build import from_checkpoint, resolve_checkpoint
from model.faster_rcnn import FasterRCNN
from model.inference.activation_ranges import Rounding
from model.inference.agreement import agreement
from model.inference.build import serving_model
from model.inference.calibration import calibration_pictures
from model.inference.errors import UncalibratedError
from model.inference.int8 import BUNDLED_RANGES, Ranges, quantised
from model.inference.network import TorchNetwork
from model.inference.openvino import as_graph
from model.weights.checkpoints import bundled_is_present
from tests.support.oracle import make_pair

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"min_size": 96, "max_size": 160, "rpn_post_nms_top_n_test": 100}
IN_8_BITS = {"reduce", "spatial", "expand", "project", "laterals", "smooths", "hidden"}
needs_bundled = pytest.mark.skipif(not bundled_is_present(), reason="the bundled weights are not built")


@pytest.fixture(autouse=True)
def _packages() -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")


@pytest.fixture(scope="module")
def bundled() -> FasterRCNN:
    return from_checkpoint(resolve_checkpoint("bundled")).eval()


def pictures(count: int = 3) -> list[Tensor]:
    return calibration_pictures(count=count)


class AskedError(Exception):
    """There are no ranges for this detector, so that pictures are asked for."""


def asked() -> list[Tensor]:
    raise AskedError


def layer(name: str) -> str:
    """`__module.network.stages.0.1.expand/aten::_convolution/Convolution` is of `expand`."""
    return next(word for word in reversed(name.partition("/")[0].split(".")) if not word.isdecimal())


def test_ranges_come_back_from_their_file(tmp_path: Path) -> None:
    ranges = Ranges("ab12", (Rounding("a", (("b", 0), ("c", 1)), 0.0, 2.5), Rounding("b", (("d", 0),), -1.0, 0.9)))
    ranges.write(tmp_path / "ranges.json")
    assert Ranges.read(tmp_path / "ranges.json") == ranges
    assert [file.name for file in tmp_path.iterdir()] == ["ranges.json"]


@needs_bundled
def test_the_bundled_detector_is_quantised_without_pictures(bundled: FasterRCNN, tmp_path: Path) -> None:
    network, kinds, roundings = TorchNetwork(bundled), {True: set[str](), False: set[str]()}, 0
    for node in quantised(bundled, asked, tmp_path, bundled=BUNDLED_RANGES).get_ordered_ops():
        roundings += node.get_type_name() == "FakeQuantize"
        if node.get_type_name() != "Convolution":
            continue
        weight, name = node.input_value(1).get_node(), node.get_friendly_name()
        is_small = weight.get_type_name() == "Multiply"
        kinds[is_small].add(layer(name))
        if is_small:
            small, scale = (weight.input_value(index).get_node() for index in (0, 1))
            values, steps = small.input_value(0).get_node().data, scale.data
            right = network.get_buffer(f"{name.partition('network.')[2].partition('/')[0]}.weight").numpy()
            assert values.dtype == np.int8
            assert (np.abs(values).max(axis=(1, 2, 3)) == 127).all()
            assert (np.abs(values * steps - right) <= 0.501 * steps).all()
    assert kinds == {True: IN_8_BITS, False: {"stem", "predictor"}}
    assert roundings == len(Ranges.read(BUNDLED_RANGES).roundings) > 80
    assert not list(tmp_path.iterdir())


@needs_bundled
def test_ranges_that_do_not_fit_are_not_taken(
    bundled: FasterRCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graph = as_graph(bundled)  # once, as it takes seconds
    monkeypatch.setattr("model.inference.int8.as_graph", lambda _model: graph.clone())
    path, ranges = tmp_path / "ranges.json", Ranges.read(BUNDLED_RANGES)

    def is_taken() -> bool:
        try:
            quantised(bundled, asked, tmp_path, bundled=path)
        except AskedError:
            return False
        return True

    ranges.write(path)
    assert is_taken()
    Ranges("of other weights", ranges.roundings).write(path)
    assert not is_taken()
    assert "made again" not in caplog.text
    Ranges(ranges.detector, (*ranges.roundings, Rounding("unheard of", (), 0.0, 1.0))).write(path)
    assert not is_taken()
    assert "of another version of OpenVINO" in caplog.text
    path.write_text("torn")
    assert not is_taken()
    assert "cannot be read and is made again" in caplog.text


@needs_bundled
def test_calibration_is_left_out_where_it_is_not_wanted(
    bundled: FasterRCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, made = as_graph(bundled), []

    def noted(_model: FasterRCNN) -> Any:
        made.append(1)
        return graph.clone()

    monkeypatch.setattr("model.inference.int8.as_graph", noted)
    found = Ranges.read(BUNDLED_RANGES).roundings
    monkeypatch.setattr("model.inference.int8.calibrated", lambda *_: found)
    with pytest.raises(UncalibratedError, match="not calibrated yet"):
        quantised(bundled, pictures, tmp_path, calibrate=False)
    assert not made  # this takes seconds
    quantised(bundled, pictures, tmp_path)
    (path,) = tmp_path.glob("*.json")
    assert Ranges.read(path) == Ranges.read(BUNDLED_RANGES)
    monkeypatch.setattr("model.inference.int8.calibrated", asked)
    assert quantised(bundled, pictures, tmp_path, calibrate=False)
    assert len(made) == 2


@needs_bundled
def test_int8_finds_what_fp32_finds(bundled: FasterRCNN, tmp_path: Path) -> None:
    exact = serving_model(bundled, device=CPU, precision="fp32")
    form = serving_model(bundled, device=CPU, precision="int8", cache=tmp_path)
    assert (form.precision, form.backend) == ("int8", "openvino")
    for shape in ((1, 3, 96, 128), (2, 3, 64, 160)):  # one compiled network, any shape
        batch = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        got, right = form.run_network(batch), exact.run_network(batch)
        for some, wanted in zip((*got.levels, *got.predictions), (*right.levels, *right.predictions), strict=True):
            assert some.shape == wanted.shape
            assert nn.functional.cosine_similarity(some.flatten(), wanted.flatten(), dim=0) > 0.97
    confident = 0
    for picture in pictures(2):
        (found,), (true,) = form.detect([picture]), exact.detect([picture])
        assert found["boxes"].dtype == torch.float32
        assert (agreement(true, found) or 0) >= 0.9  # little is missed
        assert (agreement(found, true) or 0) >= 0.9  # and little is made up
        confident += int((true["scores"] > 0.5).sum()) + int((found["scores"] > 0.5).sum())
    assert confident > 30


@needs_bundled
def test_ranges_that_cannot_be_kept_are_used(
    bundled: FasterRCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    found = Ranges.read(BUNDLED_RANGES).roundings
    monkeypatch.setattr("model.inference.int8.calibrated", lambda *_: found)
    monkeypatch.setattr("os.fsync", full)
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "folder", tmp_path):  # one that cannot be made, one on a full disk
        caplog.clear()
        assert quantised(bundled, pictures, folder)
        assert "its ranges cannot be kept: " in caplog.text
        assert str(folder) in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_other_detectors_are_calibrated_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    _, model = make_pair(**SMALL)
    # An untrained pyramid has biases of zero, of which OpenVINO makes other graphs.
    assert not model.get_parameter("rpn.head.cls_logits.bias").any()
    assert not any(model.get_parameter(f"backbone.fpn.layer_blocks.{level}.0.bias").any() for level in range(4))
    batch = torch.randn(1, 3, 64, 96)

    def served(count: int) -> list[Tensor]:
        form = serving_model(model, device=CPU, precision="int8", calibration=lambda: pictures(count), cache=tmp_path)
        output = form.run_network(batch)
        return [tensor.clone() for tensor in (*output.levels, *output.predictions)]

    first = served(8)
    assert all(tensor.std() > 0 for tensor in first)
    (path,) = tmp_path.glob("*.json")
    assert caplog.text.count("is being calibrated on") == 1
    assert "picture 8 of 8" in caplog.text
    assert all(torch.equal(one, other) for one, other in zip(first, served(8), strict=True))
    assert caplog.text.count("is being calibrated on") == 1
    path.write_text("torn")
    served(8)
    assert "cannot be read and is made again" in caplog.text
    served(2)  # other pictures are another result
    assert len(list(tmp_path.glob("*.json"))) == 2


@pytest.mark.slow
@needs_bundled
def test_the_bundled_ranges_are_those_that_calibration_finds(bundled: FasterRCNN, tmp_path: Path) -> None:
    quantised(bundled, calibration_pictures, tmp_path)
    (path,) = tmp_path.glob("*.json")
    found, kept = Ranges.read(path), Ranges.read(BUNDLED_RANGES)
    assert [(one.source, one.targets) for one in found.roundings] == [
        (one.source, one.targets) for one in kept.roundings
    ]
    for one, other in zip(found.roundings, kept.roundings, strict=True):
        assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=0.01)  # by another processor
