from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from model.faster_rcnn import FasterRCNN
from model.inference.errors import QuantisationError, UncalibratedError
from model.weights.checkpoints import WeightsError
from service.devices.detector import ModelInfo, is_interim
from service.devices.gpus import DetectorError
from service.devices.loading import batch_size, check_arithmetic, load_detectors, weights_caveat
from service.devices.model_detector import ModelDetector
from service.settings import Precision, Settings
from tests.support.fakes import CATEGORIES, FakeDetector


def info(weights: str) -> ModelInfo:
    return ModelInfo("fasterrcnn_resnet50_fpn", weights, CATEGORIES)


def test_a_loaded_detector_knows_its_model_and_its_answer(caplog: pytest.LogCaptureFixture) -> None:
    asked = Settings(
        weights="bundled",
        device="cpu",
        precision="fp32",
        backend="torch",
        max_batch_size=1,
        class_names=("a", "b", "c"),
    )
    with caplog.at_level(logging.INFO, "service.devices.loading"):
        [detector] = load_detectors(asked)
    assert (detector.device, detector.precision, detector.best_batch_size) == ("cpu", "fp32", 1)
    assert detector.info.categories.objects() == {1: "a", 2: "b", 3: "c"}
    assert (detector.info.name, detector.info.weights) == ("fasterrcnn_resnet50_fpn", "bundled")
    known = detector.known_answer  # type: ignore[attr-defined]
    assert len(known.found["boxes"]) > 5  # blood cells, which these weights find
    assert f"version {detector.info.version}" in caplog.text
    assert "measuring" not in caplog.text


@pytest.mark.parametrize("error", [UncalibratedError("not yet"), QuantisationError("int8 fails on these weights")])
def test_another_precision_stands_in_for_int8_unless_that_is_to_be_first(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def form(_model: object, **options: Any) -> SimpleNamespace:
        asked.append(options)
        if options["precision"] == "int8" and (isinstance(error, QuantisationError) or not options["calibrate"]):
            raise error
        is_given = options["precision"] in {"int8", "fp32"}
        return SimpleNamespace(precision=options["precision"] if is_given else "bf16", backend="openvino")

    def detector(**settings: Any) -> ModelDetector:
        options = Settings(calibration_images=tmp_path, backend="torch", **settings)
        return ModelDetector(cast(FasterRCNN, None), info("bundled"), device="cpu", settings=options)

    monkeypatch.setattr("service.devices.model_detector.serving_model", form)
    interim = detector(precision="int8")
    assert is_interim(interim)
    assert (interim.precision, interim.backend) == ("bf16", "openvino")
    rejected, taken = asked
    assert (rejected["precision"], rejected["calibrate"], rejected["backend"]) == ("int8", False, "torch")
    assert (taken["precision"], "calibration" in taken, taken["backend"]) == ("auto", False, "torch")
    if isinstance(error, QuantisationError):
        with pytest.raises(DetectorError, match="fails on these weights"):
            detector(precision="int8", calibrate_first=True)
    else:
        assert not is_interim(detector(precision="int8", calibrate_first=True))
    assert not is_interim(detector(precision="fp32"))


@pytest.mark.parametrize(("seconds", "best"), [({1: 0.5, 2: 1.0, 4: 2.0}, 1), ({1: 0.5, 2: 0.6, 4: 1.2}, 2)])
def test_a_cpu_measures_its_batch_size_by_the_network_alone(
    seconds: dict[int, float], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def run_network(images: torch.Tensor) -> None:
        nonlocal now
        assert images.shape[1:] == (3, 320, 448)
        now += seconds[len(images)]

    form = SimpleNamespace(precision="fp32", backend="torch", run_network=run_network, padded_hw=lambda _: (320, 448))
    monkeypatch.setattr("service.devices.model_detector.serving_model", lambda *_, **__: form)
    monkeypatch.setattr("model.inference.precision.time.perf_counter", lambda: now)
    detector = ModelDetector(cast(FasterRCNN, None), info("bundled"), device="cpu", settings=Settings())
    detector.measure_batch_size()
    assert detector.best_batch_size == best


def test_what_a_device_cannot_do_is_told_before_weights_are_read(tmp_path: Path) -> None:
    settings = Settings(weights=str(tmp_path / "none.pth"), device="cpu", precision="fp16")
    with pytest.raises(DetectorError, match="fp16 needs a GPU; choose fp32"):
        load_detectors(settings)
    with pytest.raises(WeightsError, match=r"none\.pth"):
        load_detectors(settings.model_copy(update={"precision": "fp32"}))


@pytest.mark.parametrize(
    ("precision", "devices", "reason"),
    [("tf32", ["cpu"], "tf32 needs a GPU"), ("int8", ["cpu", "cuda:0"], "int8 is for CPUs; .* on cuda:0")],
)
def test_each_device_must_have_the_arithmetic(precision: Precision, devices: list[str], reason: str) -> None:
    with pytest.raises(DetectorError, match=reason):
        check_arithmetic(Settings(precision=precision), devices)
    check_arithmetic(Settings(), devices)


def test_each_device_must_have_the_backend() -> None:
    with pytest.raises(DetectorError, match=r"OpenVINO is (for CPUs|not installed)"):
        check_arithmetic(Settings(backend="openvino"), ["cpu", "cuda:0"])


@pytest.mark.parametrize(
    ("asked", "served", "words"),
    [
        ("random", "random", "random and untrained"),
        ("auto", "bundled", "finds only person, bicycle, car, dog"),
        ("auto", "COCO_V1", None),
        ("bundled", "bundled", None),
    ],
)
def test_weights_that_stand_in_for_others_are_told(asked: str, served: str, words: str | None) -> None:
    caveat = weights_caveat(asked, info(served))
    assert caveat is None if words is None else words in str(caveat)


def test_a_batch_fits_the_device_that_gains_least_by_it() -> None:
    small, large = FakeDetector(), FakeDetector()
    small.best_batch_size, large.best_batch_size = 2, 8
    assert batch_size(Settings(max_batch_size="auto"), [large, small]) == 2
    assert batch_size(Settings(max_batch_size=5), [large, small]) == 5
