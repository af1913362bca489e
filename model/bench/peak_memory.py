"""The most memory that a form of the detector takes while it detects, each form in a process of its own.

    python -m model.bench.peak_memory CHECKPOINT FORM DEVICE HEIGHT WIDTH

On a CPU it is all of the process's memory, its code included; on a GPU what torch's allocator has taken of the device.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.bench.oracle import TORCHVISION, comparable, oracle
from model.inference.build import serving_model
from model.inference.memory import trim_host_memory
from model.inference.precision import TORCH
from model.structures import SizeHW
from model.weights.checkpoints import read_checkpoint

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_FORGET_THE_PEAK = "5"  # proc(5)


def peak_memory(checkpoint: Path, forms: Sequence[str], device: torch.device, size_hw: SizeHW) -> dict[str, int]:
    """Bytes of each form on one picture; without those of main memory where the system does not say it (not Linux).

    Args:
        checkpoint: a file of weights.
        forms: "torchvision fp32", or "ours", a precision and, if it is not torch, a backend.

    Raises:
        RuntimeError: a form fails; with its last words.
    """
    if device.type != "cuda" and not _RESET.exists():
        return {}
    found = {}
    for form in forms:
        arguments = [str(checkpoint), form, str(device), *map(str, size_hw)]
        child = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "model.bench.peak_memory", *arguments], capture_output=True, text=True
        )
        if child.returncode:
            reason = child.stderr.rpartition("Error: ")[2].strip() or f"its process ended with {child.returncode}"
            raise RuntimeError(f"the memory of {form} could not be measured: {reason}")
        found[form] = int(child.stdout.split()[-1])
    return found


def _measure(checkpoint: Path, form: str, device: torch.device, size_hw: SizeHW) -> int:
    detect = _loaded(checkpoint, form, device)
    picture = torch.zeros(3, *size_hw, dtype=torch.uint8)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        trim_host_memory()
        _RESET.write_text(_FORGET_THE_PEAK)
    with torch.inference_mode():
        for _ in range(2):  # the first keeps what the second finds
            detect([picture])
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else _peak_resident_bytes()


def _loaded(path: Path, form: str, device: torch.device) -> Callable[[list[Tensor]], object]:
    checkpoint = read_checkpoint(path)
    if form.startswith(TORCHVISION):
        model = oracle(checkpoint, device)
        return lambda pictures: model([picture.to(device).float() / 255 for picture in pictures])
    precision, backend = [*form.split()[1:], TORCH][:2]
    return serving_model(comparable(checkpoint), device=device, precision=precision, backend=backend).detect


def _peak_resident_bytes() -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the system does not say the process's peak")


if __name__ == "__main__":
    path, form, device, height, width = sys.argv[1:]
    print(_measure(Path(path), form, torch.device(device), (int(height), int(width))))  # noqa: T201
