"""Measure forms of the detector side by side, torchvision's own among them.

On a busy machine only what was measured in turns within one run can be compared, so every round runs every form once,
and ratios are medians of the rounds' own ratios.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.bench.oracle import TORCHVISION, comparable, oracle
from model.bench.peak_memory import peak_memory
from model.faster_rcnn import FasterRCNN
from model.inference.build import serving_model
from model.inference.errors import ServingFormError
from model.inference.precision import OPENVINO, PRECISIONS, TORCH, candidates, check_backend, check_precision
from model.inference.serving import ServingModel
from model.structures import SizeHW
from model.weights.checkpoints import Checkpoint, save_checkpoint

BASELINE = f"{TORCHVISION} fp32"
_MATRIX = 2048  # sides of the product that measures the machine's peak
# Of random weights: makes the classes sure of themselves, so that post-processing has its full work.
_BY_OPENVINO = ("fp32", "bf16")  # int8 always is
_CLASS_SPREAD = 60

Run = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class FormResult:
    """What one form took for a batch; seconds are medians."""

    name: str
    batch_size: int
    seconds: float
    images_per_s: float
    ratio: float  # how many times the images per second of torchvision in float32, one at a time
    share_of_peak: float | None  # of the FLOP/s that this machine reached in that arithmetic; None for int8
    peak_bytes: int | None  # of memory for one picture, in a process of its own; see `peak_memory`
    stages: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """A whole run, with what it was run on."""

    model: str  # its architecture
    forms: list[FormResult]
    size_hw: SizeHW
    padded_hw: SizeHW
    gflop: float
    peak_gflops: dict[str, float]
    rounds: int
    machine: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def bench_model(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    precisions: Sequence[str],
    backends: Sequence[str] = (TORCH,),
    size_hw: SizeHW = (480, 640),
    batch_sizes: Sequence[int] = (1,),
    rounds: int = 5,
    memory: bool = True,
    advance: Callable[[], None] = lambda: None,
) -> BenchResult:
    """Time torchvision's detector and ours on one picture.

    Args:
        checkpoint: the weights of all forms.
        precisions: of ours.
        backends: of ours; by OpenVINO, fp32 and bf16 are forms of their own.
        size_hw: of the picture, which is noise.
        batch_sizes: images at a time; 1 is always measured.
        rounds: how often each form runs.
        memory: whether to measure that too, which takes a new process for each form.
        advance: called after each round, the first of them preparing.

    Raises:
        ServingFormError: see `serving_model`.
        ValueError: the forms do not find the same, so their speed means nothing.
        RuntimeError: the memory of a form cannot be measured.
    """
    # torchvision's is given it on the device and ready; ours as the service has it, to bring there and to convert.
    picture = torch.randint(0, 256, (3, *size_hw), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = picture.float() / 255
    model = comparable(checkpoint)
    gflop, padded_hw = _gflop(model, image), model.transform.padded_hw(size_hw)
    theirs = oracle(checkpoint, device)
    forms = {
        f"ours {name}" if backend == TORCH else f"ours {name} {backend}": serving_model(
            model, device=device, precision=name, backend=backend
        )
        for name in precisions
        for backend in (backends if name in _BY_OPENVINO else (TORCH,))
    }
    image = image.to(device)
    with torch.inference_mode():
        for form in forms.values():
            if form.precision == "fp32":
                _check_same(theirs([image])[0], form.detect([picture])[0])
        before = _peaks_gflops(precisions, device)
        times = _interleaved(_runs(theirs, forms, (image, picture), batch_sizes), rounds, device, advance)
        peak = {name: max(before[name], after) for name, after in _peaks_gflops(precisions, device).items()}
        stages = {name: stage_seconds(form, picture, rounds) for name, form in forms.items()}
    names = [BASELINE, *stages]
    del forms, theirs, model
    peak_bytes = _memory(checkpoint, names, device, size_hw) if memory else {}
    return BenchResult(
        model=checkpoint.architecture.name,
        forms=_results(times, stages, peak_bytes, gflop=gflop, peak_gflops=peak),
        size_hw=size_hw,
        padded_hw=padded_hw,
        gflop=gflop,
        peak_gflops=peak,
        rounds=rounds,
        machine=machine(device),
    )


def _runs(
    theirs: Any, forms: Mapping[str, ServingModel], images: tuple[Tensor, Tensor], batch_sizes: Sequence[int]
) -> dict[tuple[str, int], Run]:
    """What to time, by name and batch size, on the image as theirs and as ours have it."""
    runs: dict[tuple[str, int], Run] = {}
    for size in dict.fromkeys((1, *batch_sizes)):
        batch, pictures = ([image] * size for image in images)
        runs[BASELINE, size] = partial(theirs, batch)
        if _has_bf16(images[0].device):
            runs[f"{TORCHVISION} bf16 autocast", size] = partial(_autocast, theirs, batch)
        for name, form in forms.items():
            runs[name, size] = partial(form.detect, pictures)
    return runs


def _results(
    times: Mapping[tuple[str, int], list[float]],
    stages: Mapping[str, dict[str, float]],
    peak_bytes: Mapping[str, int],
    *,
    gflop: float,
    peak_gflops: Mapping[str, float],
) -> list[FormResult]:
    alone = times[BASELINE, 1]
    results = []
    for (name, size), seconds in times.items():
        median = statistics.median(seconds)
        peak = peak_gflops.get(name.split()[1])
        results.append(
            FormResult(
                name=name,
                batch_size=size,
                seconds=median,
                images_per_s=size / median,
                ratio=statistics.median(size * base / own for base, own in zip(alone, seconds, strict=True)),
                share_of_peak=gflop * size / median / peak if peak else None,
                peak_bytes=peak_bytes.get(name) if size == 1 else None,
                stages=stages.get(name, {}) if size == 1 else {},
            )
        )
    return results


def _memory(checkpoint: Checkpoint, names: Sequence[str], device: torch.device, size_hw: SizeHW) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.safetensors"
        save_checkpoint(path, checkpoint.state_dict, checkpoint.info)
        return peak_memory(path, names, device, size_hw)


def available_precisions(device: torch.device) -> list[str]:
    """All that the device has, without those of extras that are not installed, and without a bf16 that is imitated.

    Where a CPU has no bf16 of its own, a product of matrices takes a hundred times as long in it.
    """
    names = []
    for name in PRECISIONS:
        if name == "bf16" and not _has_bf16(device):
            continue
        try:
            check_precision(name, device)
        except ServingFormError:
            continue
        names.append(name)
    return names


def _has_bf16(device: torch.device) -> bool:
    return "bf16" in candidates(device)


def available_backends(device: torch.device) -> list[str]:
    """torch, and OpenVINO where it is installed and the device is a CPU."""
    try:
        check_backend(OPENVINO, device)
    except ServingFormError:
        return [TORCH]
    return [TORCH, OPENVINO]


def lively(checkpoint: Checkpoint) -> Checkpoint:
    """Random weights that are sure of what they see."""
    weight = "roi_heads.box_predictor.cls_score.weight"
    checkpoint.state_dict[weight] = checkpoint.state_dict[weight] * _CLASS_SPREAD
    return checkpoint


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def stage_seconds(form: ServingModel, image: Tensor, rounds: int) -> dict[str, float]:
    """The shortest seconds of each stage of one picture's detection."""
    laps: dict[str, list[float]] = {}
    for _ in range(rounds):
        last = time.perf_counter()

        def on_stage(stage: str) -> None:
            nonlocal last
            _finish(form.device)
            now = time.perf_counter()
            laps.setdefault(stage, []).append(now - last)
            last = now

        form.detect([image], on_stage=on_stage)
    return {stage: min(seconds) for stage, seconds in laps.items()}


def _interleaved(
    runs: Mapping[tuple[str, int], Run], rounds: int, device: torch.device, advance: Callable[[], None]
) -> dict[tuple[str, int], list[float]]:
    times: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for number in range(rounds + 1):  # the first one prepares
        for key, run in runs.items():
            _finish(device)
            started = time.perf_counter()
            run()
            _finish(device)
            if number:
                times[key].append(time.perf_counter() - started)
        advance()
    return times


def _autocast(theirs: Any, batch: list[Tensor]) -> object:
    with torch.autocast(batch[0].device.type, torch.bfloat16):
        return theirs(batch)


def _check_same(wanted: Any, got: Any) -> None:
    if not torch.equal(wanted["labels"].sort().values.cpu(), got["labels"].sort().values.cpu()):
        raise ValueError("ours and torchvision's do not find the same, so their speed means nothing")


def _gflop(model: FasterRCNN, image: Tensor) -> float:
    """Multiplications and additions of one picture, in 10^9, as counted in the plain model."""
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        model.detect([image])
    return counter.get_total_flops() / 1e9


def _peaks_gflops(precisions: Sequence[str], device: torch.device) -> dict[str, float]:
    """Of the precisions in which torch multiplies matrices as fast as the machine can, which int8 is not among."""
    usual = ("fp32", "bf16") if _has_bf16(device) else ("fp32",)
    return {name: _peak_gflops(name, device) for name in dict.fromkeys((*precisions, *usual)) if name != "int8"}


def _peak_gflops(precision: str, device: torch.device) -> float:
    """What a large product of matrices reaches in this arithmetic, in 10^9 operations a second; the best of a few."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    a, b = (torch.ones(_MATRIX, _MATRIX, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        _finish(device)
        started = time.perf_counter()
        _ = a @ b
        _finish(device)
        best = min(best, time.perf_counter() - started)
    return 2 * _MATRIX**3 / best / 1e9


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - not a file to resolve
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
