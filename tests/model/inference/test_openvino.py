"""int8 by OpenVINO: what is quantised, kept and found."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from model import fasterrcnn_resnet50_fpn
from model.inference.agreement import agreement
from model.inference.build import serving_model
from model.inference.calibration import calibration_pictures
from model.inference.errors import QuantisationError
from model.inference.network import NetworkOutput, TorchNetwork
from model.inference.openvino import check_fidelity
from model.inference.serving import ServingModel
from model.weights.checkpoints import bundled_is_present
from tests.support.oracle import make_pair

CPU = torch.device("cpu")


SMALL: dict[str, Any] = {"min_size": 96, "max_size": 160, "rpn_post_nms_top_n_test": 100}


def pictures(count: int = 3) -> list[Tensor]:
    return calibration_pictures(count=count)


def quantised_layers(path: Path) -> set[str]:
    """Kinds of the convolutions whose weights are made from integers, and are not simply there."""
    import openvino

    network = openvino.Core().read_model(path)
    convolutions = [node for node in network.get_ordered_ops() if node.get_type_name() == "Convolution"]
    assert len(convolutions) > 60
    kinds: dict[str, set[bool]] = {}
    for node in convolutions:
        (kind,) = re.findall(
            r"\.(stem|reduce|spatial|expand|project|laterals|smooths|hidden|predictor)\b", node.get_friendly_name()
        )
        kinds.setdefault(kind, set()).add(node.input_value(1).get_node().get_type_name() != "Constant")
    assert all(len(answers) == 1 for answers in kinds.values()), kinds
    return {kind for kind, answers in kinds.items() if answers == {True}}


@pytest.mark.slow
@pytest.mark.skipif(not bundled_is_present(), reason="the bundled weights are not built")
def test_int8_is_quantised_once_and_detects_about_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    model = fasterrcnn_resnet50_fpn(weights="bundled")
    exact = serving_model(model, device=CPU, precision="fp32")

    # Of fewer than 12, a box or two are drawn otherwise than float32's.
    def served(calibration: Callable[[], list[Tensor]] = lambda: pictures(12)) -> ServingModel:
        return serving_model(model, device=CPU, precision="int8", calibration=calibration, cache=tmp_path)

    first = served()
    assert first.precision == "int8"
    assert caplog.text.count("quantised to int8, once") == 1
    (path,) = tmp_path.glob("*.xml")
    assert quantised_layers(path) == {"reduce", "spatial", "expand", "project", "laterals", "smooths", "hidden"}
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{path.stem}.bin", path.name]

    for shape in ((1, 3, 96, 128), (2, 3, 64, 160)):  # one compiled model, any shape
        batch = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        got, right = first.run_network(batch), exact.run_network(batch)
        for some, wanted in zip((*got.levels, *got.predictions), (*right.levels, *right.predictions), strict=True):
            assert some.shape == wanted.shape
            assert nn.functional.cosine_similarity(some.flatten(), wanted.flatten(), dim=0) > 0.97
    confident = 0
    for picture in pictures():
        (found,), (true,) = first.detect([picture.float() / 255]), exact.detect([picture.float() / 255])
        assert found["boxes"].dtype == torch.float32
        sure = true["scores"] > 0.5
        assert sure.sum() > 3
        assert box_iou(true["boxes"][sure], found["boxes"]).max(dim=1).values.min() > 0.8
        assert (agreement(true, found) or 0) >= 0.9  # little is missed
        assert (agreement(found, true) or 0) >= 0.9  # and little is made up
        confident += int(sure.sum()) + int((found["scores"] > 0.5).sum())
    assert confident > 40

    before = path.stat().st_mtime_ns
    assert torch.equal(served().run_network(batch).predictions[0], first.run_network(batch).predictions[0])
    assert path.stat().st_mtime_ns == before
    assert caplog.text.count("quantised to int8, once") == 1

    path.write_text("torn")
    served()
    assert "cannot be read and is made again" in caplog.text
    served(lambda: pictures()[:2])  # other pictures are another result
    assert len(list(tmp_path.glob("*.xml"))) == 2


@pytest.mark.slow
def test_int8_of_untrained_weights_whose_biases_are_zero(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    _, model = make_pair(**SMALL)
    assert not model.get_parameter("rpn.head.cls_logits.bias").any()
    assert not any(model.get_parameter(f"backbone.fpn.layer_blocks.{level}.0.bias").any() for level in range(4))
    served = serving_model(model, device=CPU, precision="int8", calibration=pictures, cache=tmp_path)
    output = served.run_network(torch.randn(1, 3, 64, 96))
    assert all(level.std() > 0 for level in (*output.levels, *output.predictions))


@pytest.mark.parametrize("part", ["levels", "predictions"])
@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_a_quantised_network_that_went_wrong_is_refused(part: str, wrong: float) -> None:
    _, model = make_pair(**SMALL)
    reference = TorchNetwork(model)

    def broken(images: Tensor) -> NetworkOutput:
        output: NetworkOutput = reference(images)
        return output._replace(**{part: [*getattr(output, part)[:-1], getattr(output, part)[-1] * wrong]})

    images = torch.randn(1, 3, 64, 64)
    check_fidelity(reference, reference, images)
    with pytest.raises(QuantisationError, match="Choose fp32 or bf16"):
        check_fidelity(broken, reference, images)
