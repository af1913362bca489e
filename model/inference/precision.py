"""Which arithmetic a device has, what computes in it, and which is the fastest there, by measurement."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import TypeVar

import torch

from model.inference.errors import OpenVINOMissingError, PrecisionError
from model.inference.memory import is_out_of_memory

logger = logging.getLogger(__name__)

Name = TypeVar("Name", bound=Hashable)

AUTO = "auto"
PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "int8")
BACKENDS = (TORCH, OPENVINO) = ("torch", "openvino")  # of the network; the rest is torch's
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_HOW_TO_INSTALL = "make install in a clone, or build the image with --build-arg EXTRA=openvino"
_ROUNDS = 3


def check_precision(name: str, device: torch.device) -> None:
    """Reject what the device has not, before anything large is read.

    Raises:
        PrecisionError: unknown, or not on this device.
        OpenVINOMissingError: int8, and its packages are not installed.
    """
    if name not in {AUTO, *PRECISIONS}:
        raise PrecisionError(f"precision must be one of {', '.join((AUTO, *PRECISIONS))}, not {name!r}")
    if name in {"tf32", "fp16"} and device.type != "cuda":
        raise PrecisionError(f"{name} needs a GPU; choose fp32, bf16 or int8 on {device}")
    if name == "int8" and device.type != "cpu":
        raise PrecisionError(f"int8 is for CPUs; choose fp32, tf32, bf16 or fp16 on {device}")
    if name == "int8" and (missing := _missing_for_int8()):
        raise OpenVINOMissingError(f"int8 needs {' and '.join(missing)}: {_HOW_TO_INSTALL}; or choose fp32 or bf16")


def check_backend(name: str, device: torch.device) -> None:
    """Reject what cannot compute the network there.

    Raises:
        PrecisionError: unknown, or not on this device.
        OpenVINOMissingError: it is not installed.
    """
    if name not in {AUTO, *BACKENDS}:
        raise PrecisionError(f"the backend must be one of {', '.join((AUTO, *BACKENDS))}, not {name!r}")
    if name == OPENVINO and device.type != "cpu":
        raise PrecisionError(f"OpenVINO is for CPUs; choose torch on {device}")
    if name == OPENVINO and not has_openvino():
        raise OpenVINOMissingError(f"OpenVINO is not installed: {_HOW_TO_INSTALL}; or choose torch")


def has_openvino() -> bool:
    return find_spec("openvino") is not None


def has_int8() -> bool:
    return not _missing_for_int8()


def _missing_for_int8() -> list[str]:
    return [package for package in ("openvino", "nncf") if find_spec(package) is None]


def candidates(device: torch.device) -> list[str]:
    """What `auto` chooses from: the precisions whose detections need no looking at before they are trusted.

    int8 is not among them, as it is only as good as the pictures it was calibrated on: it has to be compared on them.
    """
    if device.type == "cuda":
        return ["fp32", "fp16", "bf16"]
    return ["fp32", "bf16"] if cpu_has_bfloat16() else ["fp32"]


def cpu_has_bfloat16() -> bool:
    """Whether the processor computes in bf16 by itself. Where torch imitates it, it takes fifty times as long."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def fastest(runs: Mapping[str, Callable[[], object]], *, gain: float = 1.0) -> str:
    """The name whose run takes the shortest.

    Args:
        runs: the first is preferred.
        gain: how many times faster than the first another must be.
    """
    for run in runs.values():
        run()  # the first one prepares
    seconds = _shortest(runs)
    preferred = next(iter(runs))
    chosen = min(seconds, key=lambda name: seconds[name])
    chosen = chosen if gain * seconds[chosen] <= seconds[preferred] else preferred
    logger.info("%s: %s is taken", ", ".join(f"{name} {taken:.3f} s" for name, taken in seconds.items()), chosen)
    return chosen


def best_batch_size(
    run: Callable[[int], object], *, largest: int, gain: float, smallest: int = 1, patience: int = 1
) -> int:
    """The fewest pictures at a time that, when doubled, are not answered so much faster each.

    Args:
        run: detects in so many pictures, to its end.
        largest: where to stop.
        gain: how many times as many pictures a second pay for a longer latency.
        smallest: where to begin.
        patience: after how many doublings in a row that gain less to stop. With more than 1, a size that is slow for a
            reason of its own does not end the search.
    """
    if largest > 1 and not _fits(run, smallest):
        return best_batch_size(run, largest=smallest // 2, gain=gain)  # 1 where not even that fits now
    best, size, without_gain = smallest, smallest, 0
    while 2 * size <= largest and without_gain < patience and _fits(run, 2 * size):
        size *= 2
        seconds = _shortest({count: partial(run, count) for count in (best, size)})
        if gain * seconds[size] / size > seconds[best] / best:
            without_gain += 1
        else:
            best, without_gain = size, 0
    return best


def _fits(run: Callable[[int], object], size: int) -> bool:
    """Whether the device has the memory for so many pictures at a time. This first run also prepares that size."""
    try:
        run(size)
    except Exception as error:
        if is_out_of_memory(error):
            return False
        raise
    return True


def _shortest(runs: Mapping[Name, Callable[[], object]]) -> dict[Name, float]:
    """Shortest seconds of each run, all of which have run before. In turns, so that what disturbs one disturbs all."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - started)
    return best
