"""The devices of this machine: which there are, and what can be told of each."""

from __future__ import annotations

import torch


class DetectorError(Exception):
    """The detector cannot be set up as asked. The message tells what to do."""


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
            given = "" if gpus else ". A container sees the GPUs that it is given: docker run --gpus all"
            raise DetectorError(f"there is no device {name!r} here; there is {', '.join(sorted(known))}{given}")
    if len(set(names)) < len(names):
        raise DetectorError(f"a device is named twice in {text!r}")
    return names
