from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.devices import gpus
from service.devices.gpus import DetectorError, device_caveat, parse_devices, unusable_gpu

PCI = "0000:17:00.0"


class Machine:
    """The files by which a system shows its GPU."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def has_gpu(self) -> Machine:
        return self._write(f"sys/bus/pci/devices/{PCI}/vendor", "0x10de\n")._write(
            f"sys/bus/pci/devices/{PCI}/class", "0x030200\n"
        )

    def has_driver(self, version: str) -> Machine:
        self._write(
            "proc/driver/nvidia/version",
            f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Sat Aug 31 2024\nGCC version: 12\n",
        )
        return self._write(f"proc/driver/nvidia/gpus/{PCI}/information", "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ: 23\n")

    def has_device_files(self, mode: int = 0o666) -> Machine:
        for name in ("nvidia0", "nvidiactl"):
            self._write(f"dev/{name}", "")
            (self.root / "dev" / name).chmod(mode)
        return self

    def _write(self, path: str, text: str) -> Machine:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)
        return self


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_machine_without_a_gpu_has_nothing_to_explain(machine: Machine) -> None:
    machine._write(f"sys/bus/pci/devices/{PCI}/vendor", "0x8086\n")
    machine._write("sys/bus/pci/devices/0000:00:1f.0/vendor", "0x10de\n")  # NVIDIA's, but a sound card
    machine._write("sys/bus/pci/devices/0000:00:1f.0/class", "0x040300\n")
    assert unusable_gpu(machine.root, {}, "13.0") is None


def test_a_driver_that_is_too_old_is_named_with_the_one_that_is_needed(machine: Machine) -> None:
    machine.has_gpu().has_driver("535.183.01").has_device_files()
    told = unusable_gpu(machine.root, {}, "13.0")
    assert told is not None
    assert told.startswith("the GPU NVIDIA H100 80GB HBM3 cannot be used, because its driver 535.183.01 is too old")
    for way in ("CUDA 13.0", "driver 580 or later", "TORCH_INDEX"):
        assert way in told


@pytest.mark.parametrize(
    ("driver", "cuda", "is_too_old"),
    [("580.65.06", "13.2", False), ("570.10", "13.0", True), ("525.60.13", "12.8", False), ("470.1", "12.1", True)],
)
def test_which_driver_is_too_old(machine: Machine, driver: str, cuda: str, is_too_old: bool) -> None:
    machine.has_driver(driver).has_device_files()
    assert ("too old" in str(unusable_gpu(machine.root, {}, cuda))) is is_too_old


def test_the_open_kernel_module_has_a_version_too(machine: Machine) -> None:
    machine.has_driver("1.0").has_device_files()
    machine._write(
        "proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.1  Release Build\n"
    )
    assert "its driver 535.1 is too old" in str(unusable_gpu(machine.root, {}, "13.0"))


@pytest.mark.parametrize("value", ["", "-1", "none", "NoDevFiles"])
def test_a_gpu_that_is_hidden(machine: Machine, value: str) -> None:
    machine.has_driver("580.1").has_device_files()
    told = unusable_gpu(machine.root, {"CUDA_VISIBLE_DEVICES": value}, "13.0")
    assert f"CUDA_VISIBLE_DEVICES={value!r} hides it" in str(told)


def test_a_number_that_is_not_there(machine: Machine) -> None:
    machine.has_driver("580.1").has_device_files()
    assert "names none" in str(unusable_gpu(machine.root, {"CUDA_VISIBLE_DEVICES": "7"}, "13.0"))


def test_a_torch_without_cuda(machine: Machine) -> None:
    told = unusable_gpu(machine.has_driver("580.1").has_device_files().root, {}, None)
    assert "built without CUDA" in str(told)
    assert "TORCH_INDEX" in str(told)


def test_no_driver(machine: Machine) -> None:
    told = unusable_gpu(machine.has_gpu().root, {}, "13.0")
    assert told is not None
    assert told.startswith(f"an NVIDIA GPU at PCI {PCI} cannot be used, because no NVIDIA driver is loaded")


def test_a_container_that_was_given_none(machine: Machine) -> None:
    assert "--gpus all" in str(unusable_gpu(machine.has_driver("580.1").root, {}, "13.0"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do anything")
def test_a_device_file_without_permission(machine: Machine) -> None:
    machine.has_driver("580.1").has_device_files(mode=0o000)
    assert "may not read and write" in str(unusable_gpu(machine.root, {}, "13.0"))


def test_a_device_file_without_permission_is_told_of_before_the_driver(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    told = unusable_gpu(machine.has_driver("400.1").has_device_files().root, {}, "13.0")
    assert f"may not read and write {machine.root}/dev/nvidia0" in str(told)


def test_what_nothing_explains(machine: Machine) -> None:
    assert "nvidia-smi" in str(unusable_gpu(machine.has_driver("580.1").has_device_files().root, {}, "13.0"))


def test_the_cpu_never_serves_in_silence_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "unusable_gpu", lambda: "the GPU X cannot be used, because Y")
    told = device_caveat("auto", ["cpu"])
    assert told is not None
    assert told.startswith("the CPU serves, slower than a GPU would: the GPU X cannot be used, because Y")
    assert device_caveat("cpu", ["cpu"]) is None
    assert device_caveat("auto", ["cuda:0"]) is None
    with pytest.raises(DetectorError, match="there is cpu; the GPU X cannot be used, because Y"):
        parse_devices("cuda:7")


def test_without_a_gpu_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "unusable_gpu", lambda: None)
    assert device_caveat("auto", ["cpu"]) is None
