"""The network by OpenVINO in float32 and bfloat16, and when it is chosen."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from model.build import from_checkpoint, resolve_checkpoint
from model.faster_rcnn import FasterRCNN
from model.inference.build import serving_model
from model.inference.calibration import calibration_pictures
from model.inference.errors import ServingFormError
from model.inference.network import NetworkOutput, TorchNetwork
from model.inference.openvino import OpenVINONetwork, as_graph, difference
from model.inference.precision import cpu_has_bfloat16
from model.inference.serving import ServingModel
from model.weights.checkpoints import bundled_is_present
from tests.support.oracle import make_pair
from tests.support.processes import script_environment

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"min_size": 96, "max_size": 160, "rpn_post_nms_top_n_test": 100}
needs_bundled = pytest.mark.skipif(not bundled_is_present(), reason="the bundled weights are not built")
native_bf16 = pytest.mark.skipif(not cpu_has_bfloat16(), reason="OpenVINO computes in fp32 on this processor")


@pytest.fixture
def openvino() -> Any:
    return pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def small() -> FasterRCNN:
    return make_pair(**SMALL)[1]


@needs_bundled
@pytest.mark.usefixtures("openvino")
def test_fp32_is_torchs_answer_alone_and_in_company() -> None:
    model = from_checkpoint(resolve_checkpoint("bundled"), min_size=192, max_size=256)
    torchs = serving_model(model, device=CPU, precision="fp32")
    served = serving_model(model, device=CPU, precision="fp32", backend="openvino")
    assert (torchs.backend, served.precision, served.backend) == ("torch", "fp32", "openvino")
    pictures = calibration_pictures(count=3)
    for picture, together in zip(pictures, served.detect(pictures), strict=True):
        (wanted,), (alone,) = torchs.detect([picture]), served.detect([picture])
        assert len(wanted["labels"]) > 5
        for found in (alone, together):
            assert torch.equal(found["labels"], wanted["labels"])
            torch.testing.assert_close(found["boxes"], wanted["boxes"], rtol=0, atol=0.01)
            torch.testing.assert_close(found["scores"], wanted["scores"], rtol=0, atol=1e-4)


@pytest.mark.usefixtures("openvino")
def test_one_compiled_network_takes_any_shape(small: FasterRCNN) -> None:
    reference = TorchNetwork(small)  # its pyramid's biases are zero
    network = OpenVINONetwork(as_graph(small), dtype=torch.float32, threads=1)
    for shape in ((1, 3, 64, 96), (2, 3, 32, 160), (1, 3, 64, 96)):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        assert [tensor.shape for tensor in network(images).levels] == [
            tensor.shape for tensor in reference(images).levels
        ]
        assert difference(network, reference, images, least=0.99999) is None


@pytest.mark.usefixtures("openvino")
def test_in_bf16_the_pyramid_has_half_the_bytes(small: FasterRCNN) -> None:
    network = OpenVINONetwork(as_graph(small), dtype=torch.bfloat16, threads=1)
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    output = network(images)
    assert {level.dtype for level in output.levels} == {torch.bfloat16}
    assert {prediction.dtype for prediction in output.predictions} == {torch.float32}
    assert difference(network, TorchNetwork(small), images, least=0.98) is None


@native_bf16
@pytest.mark.usefixtures("openvino")
def test_bf16_is_about_torchs(small: FasterRCNN) -> None:
    network = OpenVINONetwork(as_graph(small), dtype=torch.bfloat16, threads=1)
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    assert difference(network, TorchNetwork(small, torch.bfloat16), images, least=0.98) is None
    assert difference(network, TorchNetwork(small), images, least=0.9999999) is not None


@pytest.mark.parametrize("part", ["levels", "predictions"])
@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_a_network_that_went_wrong_is_noticed(part: str, wrong: float, small: FasterRCNN) -> None:
    reference = TorchNetwork(small)

    def broken(images: Tensor) -> NetworkOutput:
        output: NetworkOutput = reference(images)
        return output._replace(**{part: [*getattr(output, part)[:-1], getattr(output, part)[-1] * wrong]})

    images = torch.randn(1, 3, 64, 64)
    assert difference(reference, reference, images, least=0.9) is None
    assert "is like torch's by" in str(difference(broken, reference, images, least=0.9))


@pytest.mark.parametrize("faster", ["torch", "openvino"])
@pytest.mark.usefixtures("openvino")
def test_auto_takes_the_faster_backend(faster: str, small: FasterRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[dict[str, Any]] = []

    def fastest(runs: dict[str, Any], *, gain: float) -> str:
        assert gain > 1
        timed.append(runs)
        return faster

    monkeypatch.setattr("model.inference.build.fastest", fastest)
    form = serving_model(small, device=CPU, precision="fp32", backend="auto")
    assert form.backend == faster
    assert list(timed[0]) == ["torch", "openvino"]
    assert serving_model(small, device=CPU, precision="fp32", backend="torch").backend == "torch"
    assert len(timed) == 1


@pytest.mark.usefixtures("openvino")
def test_torch_serves_where_openvino_fails(
    small: FasterRCNN, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_graph: object, **_options: object) -> None:
        raise RuntimeError("no such primitive\nat line 3")

    monkeypatch.setattr("model.inference.build.OpenVINONetwork", fails)
    assert serving_model(small, device=CPU, precision="fp32", backend="auto").backend == "torch"
    assert "OpenVINO fails: no such primitive" in caplog.text
    with pytest.raises(ServingFormError, match=r"no such primitive\. Choose torch"):
        serving_model(small, device=CPU, precision="fp32", backend="openvino")


@needs_bundled
@pytest.mark.parametrize("is_sound", [True, False])
def test_auto_takes_int8_where_it_finds_the_same_on_the_calibration_pictures(
    is_sound: bool, small: FasterRCNN, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model = from_checkpoint(resolve_checkpoint("bundled"))
    other = model if is_sound else small
    stand_in = serving_model(other, device=CPU, precision="fp32")
    stand_in.precision = "int8"
    monkeypatch.setattr("model.inference.build.has_int8", lambda: True)
    monkeypatch.setattr("model.inference.build.candidates", lambda _device: ["fp32"])
    monkeypatch.setattr("model.inference.build.has_openvino", lambda: False)
    monkeypatch.setattr("model.inference.build._int8", lambda *_, **__: stand_in)
    monkeypatch.setattr("model.inference.build.fastest", lambda runs, **_: list(runs)[-1])

    def served(**options: Any) -> ServingModel:
        return serving_model(model, device=CPU, **options)

    form = served(backend="auto", calibration=lambda: calibration_pictures(count=1))
    assert form.precision == ("int8" if is_sound else "fp32")
    assert ("int8 is not used, although it is faster" in caplog.text) != is_sound
    assert served(backend="auto").precision == "fp32"  # without pictures it is not trusted
    assert served(backend="torch", calibration=lambda: calibration_pictures(count=1)).precision == "fp32"


LET_GO_ELSEWHERE = """
import signal, threading
import openvino, torch
from openvino import opset8
from model.inference.openvino import OpenVINONetwork

images = opset8.parameter([1, 3, 8, 8], openvino.Type.f32)
networks = [OpenVINONetwork(openvino.Model([opset8.relu(images)], [images]), dtype=torch.float32, threads=1)]
freeing = threading.Thread(target=networks.clear)
freeing.start()
freeing.join()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.usefixtures("openvino")
def test_a_signal_is_handled_when_another_thread_has_let_a_network_go() -> None:
    # The flag gives the process a stack for signals, as pytest's processes have one, and a trace where it dies.
    command = [sys.executable, "-X", "faulthandler", "-c", LET_GO_ELSEWHERE]
    done = subprocess.run(command, env=script_environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.mark.usefixtures("openvino")
def test_nothing_reports_that_openvino_and_nncf_are_used() -> None:
    pytest.importorskip("nncf")
    script = "import sys; import model.inference.openvino, openvino, nncf; print(sys.modules['openvino_telemetry'])"
    command = [
        sys.executable,
        "-c",
        f"{script}; print([name for name in sys.modules if 'openvino_telemetry.' in name])",
    ]
    done = subprocess.run(command, env=script_environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["None", "[]"]
