"""The devices of this machine: which there are, what is known of each, and why a GPU cannot be used."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

# The oldest driver that runs programs of a CUDA version (NVIDIA's CUDA Compatibility, table of minor versions).
_LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
_NVIDIA_PCI = "0x10de"
_DISPLAY_PCI = "0x03"  # the class of display and 3D controllers
_ANOTHER_TORCH = "another build of torch (TORCH_INDEX=ADDRESS for make serve, see docs/deployment.md)"


class DetectorError(Exception):
    """The detector cannot be set up as asked. The message says what to do."""


def device_name(device: str) -> str:
    """What its maker calls it."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device


def device_memory(device: str) -> dict[str, int]:
    """Bytes of a GPU's memory: those of tensors, those torch holds for them, all there are. Of a CPU, nothing.

    From torch's own books, so that it neither waits for a device that hangs nor fails on one that is lost.
    """
    if torch.device(device).type != "cuda":
        return {}
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "total": torch.cuda.get_device_properties(device).total_memory,
    }


def parse_devices(text: str) -> list[str]:
    """Devices from "auto" (every GPU, or else the CPU), "cpu", "cuda", or a comma-separated list.

    Raises:
        DetectorError: a device that does not exist here, or is named twice.
    """
    gpus = torch.cuda.device_count()
    if text == "auto":
        return [f"cuda:{index}" for index in range(gpus)] or ["cpu"]
    names = ["cuda:0" if name.strip() == "cuda" else name.strip() for name in text.split(",")]
    known = {"cpu", *(f"cuda:{index}" for index in range(gpus))}
    for name in names:
        if name not in known:
            reason = unusable_gpu() or "a container sees the GPUs that it is given: docker run --gpus all"
            raise DetectorError(
                f"there is no device {name!r} here; there is {', '.join(sorted(known))}{'' if gpus else f'; {reason}'}"
            )
    if len(set(names)) < len(names):
        raise DetectorError(f"a device is named twice in {text!r}")
    return names


def device_caveat(asked: str, devices: Sequence[str]) -> str | None:
    """What to say loudly where a machine with a GPU serves on its CPU without having been asked to.

    Args:
        asked: the `--device` argument.
        devices: what is served on.
    """
    if asked != "auto" or any(device != "cpu" for device in devices):
        return None
    reason = unusable_gpu()
    return (
        None
        if reason is None
        else f"the CPU serves, slower than a GPU would: {reason}; --device cpu serves on it without this remark"
    )


def unusable_gpu(
    root: Path = Path("/"), environment: Mapping[str, str] = os.environ, cuda: str | None = torch.version.cuda
) -> str | None:
    """Of a machine on which torch sees no GPU: which NVIDIA GPU it has, why torch cannot use it, and the way forward.

    None where there is no such GPU.

    Args:
        root: where the system's files are.
        environment: the process's.
        cuda: the version of CUDA that torch is built for; None for a build without.
    """
    gpu = next(_gpus(root), None)
    if gpu is None:
        return None
    return f"{gpu} cannot be used, because {_obstacle(root, environment, cuda)}"


def _gpus(root: Path) -> Iterator[str]:
    """What the driver calls the GPUs; without a driver, what the bus says of them."""
    for information in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        model = re.search(r"^Model:\s*(.+?)\s*$", _text(information), re.MULTILINE)
        yield f"the GPU {model[1]}" if model else "an NVIDIA GPU"
    for vendor in sorted(root.glob("sys/bus/pci/devices/*/vendor")):
        if _text(vendor).strip() == _NVIDIA_PCI and _text(vendor.with_name("class")).startswith(_DISPLAY_PCI):
            yield f"an NVIDIA GPU at PCI {vendor.parent.name}"


def _obstacle(root: Path, environment: Mapping[str, str], cuda: str | None) -> str:
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    version = re.search(r"Kernel Module\s+(?:for \S+\s+)?([0-9.]+)", _text(root / "proc/driver/nvidia/version"))
    nodes = sorted(root.glob("dev/nvidia[0-9]*"))
    barred = [node for node in [*nodes, root / "dev/nvidiactl"] if not os.access(node, os.R_OK | os.W_OK)]
    if cuda is None:
        return f"this torch is built without CUDA; install {_ANOTHER_TORCH}"
    if visible is not None and not re.match(r"\s*(\d|GPU-|MIG-)", visible):
        return f"CUDA_VISIBLE_DEVICES={visible!r} hides it; unset it"
    if version is None:
        return "no NVIDIA driver is loaded; install one, or load its kernel module (modprobe nvidia)"
    if not nodes:
        return (
            "it has no device file /dev/nvidia0; a container sees the GPUs that it is given (docker run --gpus all), "
            "and elsewhere nvidia-modprobe makes them"
        )
    if barred:
        return f"this user may not read and write {barred[0]}; give it the group that may"
    least = _LEAST_DRIVER.get(int(cuda.partition(".")[0]))
    if least is not None and int(version[1].partition(".")[0]) < least:
        return (
            f"its driver {version[1]} is too old for torch's CUDA {cuda}; install driver {least} or later, or "
            f"{_ANOTHER_TORCH} for an older CUDA"
        )
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES={visible!r} names none that is there; unset it"
    return f"CUDA {cuda} does not start with driver {version[1]}; nvidia-smi may tell more"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
