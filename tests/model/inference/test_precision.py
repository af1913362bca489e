from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

from model.inference.errors import OpenVINOMissingError, PrecisionError
from model.inference.precision import PRECISIONS, best_batch_size, candidates, check_backend, check_precision, fastest

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", ["auto", "fp32", "bf16", "int8"])
def test_a_cpu_has(name: str) -> None:
    if name == "int8":
        pytest.importorskip("openvino")
    check_precision(name, CPU)


def test_what_int8_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)  # as if it were not installed
    with pytest.raises(OpenVINOMissingError, match=r"needs (openvino and )?nncf: .*choose fp32 or bf16"):
        check_precision("int8", CPU)


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("fp16", CPU, "needs a GPU; choose fp32, bf16 or int8"),
        ("tf32", CPU, "needs a GPU"),
        ("int8", GPU, "is for CPUs; choose fp32, tf32, bf16 or fp16"),
        ("fp8", CPU, "must be one of auto, fp32"),
    ],
)
def test_what_a_device_has_not_is_told(name: str, device: torch.device, message: str) -> None:
    with pytest.raises(PrecisionError, match=message):
        check_precision(name, device)


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [("openvino", GPU, "is for CPUs; choose torch on cuda"), ("onnx", CPU, "must be one of auto, torch, openvino")],
)
def test_what_cannot_compute_on_a_device_is_told(name: str, device: torch.device, message: str) -> None:
    check_backend("auto", device)
    check_backend("torch", device)
    with pytest.raises(PrecisionError, match=message):
        check_backend(name, device)


def test_openvino_where_it_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    check_backend("auto", CPU)
    with pytest.raises(OpenVINOMissingError, match=r"OpenVINO is not installed: .*or choose torch"):
        check_backend("openvino", CPU)


def test_candidates_are_what_the_device_has() -> None:
    for device in (CPU, GPU):
        assert candidates(device)[0] == "fp32"
        assert set(candidates(device)) <= set(PRECISIONS)
        for name in candidates(device):
            check_precision(name, device)


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Takes so many seconds on the clock that runs are measured by, and none of the tests' own."""
    now = 0.0

    def pass_seconds(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("model.inference.precision.time.perf_counter", lambda: now)
    return pass_seconds


def test_the_fastest_wins_although_its_first_run_is_the_slowest(pass_time: Callable[[float], None]) -> None:
    runs = []

    def run(name: str, first_s: float, later_s: float) -> None:
        pass_time(later_s if name in runs else first_s)
        runs.append(name)

    chosen = fastest({"slow": lambda: run("slow", 0, 0.05), "fast": lambda: run("fast", 0.2, 0)})
    assert chosen == "fast"
    assert runs[:4] == ["slow", "fast", "slow", "fast"]  # in turn


def test_a_change_has_to_gain_something(pass_time: Callable[[float], None]) -> None:
    runs = {"first": lambda: pass_time(0.1), "other": lambda: pass_time(0.05)}
    assert fastest(runs, gain=1.05) == "other"
    assert fastest(runs, gain=4.0) == "first"


def test_the_best_batch_size_stops_where_a_larger_one_gains_nothing(pass_time: Callable[[float], None]) -> None:
    seconds_for = {1: 0.06, 2: 0.08, 4: 0.1, 8: 0.21, 16: 0.22}  # 17, 25, 40, 38 and 73 a second
    assert best_batch_size(lambda size: pass_time(seconds_for[size]), largest=16, gain=1.05) == 4
    assert best_batch_size(lambda size: pass_time(seconds_for[size]), largest=2, gain=1.05) == 2
    assert best_batch_size(lambda size: pass_time(0.03 * size), largest=4, gain=1.05) == 1

    def limited(size: int) -> None:
        if size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        pass_time(0.03)

    assert best_batch_size(limited, largest=16, gain=1.05) == 2
    assert best_batch_size(limited, largest=16, smallest=4, gain=1.05) == 2


def test_where_nothing_larger_fits_the_best_batch_size_is_one() -> None:
    tried = []

    def full(size: int) -> None:
        tried.append(size)
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert best_batch_size(full, largest=16, smallest=4, gain=1.05) == 1
    assert best_batch_size(full, largest=16, gain=1.05) == 1
    tried.clear()
    assert best_batch_size(full, largest=1, gain=1.05) == 1
    assert not tried


def test_a_larger_batch_must_gain_what_is_asked(pass_time: Callable[[float], None]) -> None:
    seconds_for = {1: 0.1, 2: 0.18, 4: 0.4}  # 10, 11.1 and 10 a second
    assert best_batch_size(lambda size: pass_time(seconds_for[size]), largest=4, gain=1.1) == 2
    assert best_batch_size(lambda size: pass_time(seconds_for[size]), largest=4, gain=1.15) == 1


def test_a_machine_that_changes_its_pace_meanwhile_does_not_decide_the_batch_size(
    pass_time: Callable[[float], None],
) -> None:
    """Sizes run in turns: of three timed runs of each, the first is slow for both, and the second for the smaller."""
    passed = 0

    def run(size: int) -> None:
        nonlocal passed
        passed += 1
        pass_time(0.1 * size * (2 if passed < 6 else 1))

    assert best_batch_size(run, largest=2, gain=1.15) == 1


def test_a_patient_search_for_the_best_batch_size_looks_beyond_one_that_gains_little(
    pass_time: Callable[[float], None],
) -> None:
    seconds_for = {4: 0.04, 8: 0.07, 16: 0.14, 32: 0.2, 64: 0.4, 128: 0.8}  # 100, 114, 114, 160, 160 a second
    tried = []

    def run(size: int) -> None:
        tried.append(size)
        pass_time(seconds_for[size])

    assert best_batch_size(run, smallest=4, largest=256, patience=2, gain=1.05) == 32
    assert set(tried) == {4, 8, 16, 32, 64, 128}
    assert best_batch_size(run, smallest=4, largest=256, gain=1.05) == 8
