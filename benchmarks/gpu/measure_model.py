"""The detector without a service: what it finds beside torchvision's, alone and in company, its speed and its kernels.

Run by `run.py`; alone: `python benchmarks/gpu/measure_model.py --output model.json --device cuda`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import Record
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from model.bench.measure import available_precisions, lively
from model.bench.oracle import comparable, oracle
from model.build import resolve_checkpoint
from model.data.samples import read_image
from model.data.synthetic import SyntheticData
from model.inference.agreement import agreement
from model.inference.build import serving_model
from model.inference.precision import best_batch_size
from model.inference.serving import ServingModel
from model.structures import Detection
from model.weights.checkpoints import Checkpoint

PICTURE_HW = (480, 640)
_TINY = {"min_size": 128, "max_size": 192}  # of the rehearsal
_REPEATS = 12
_WARM_UP = 20  # a padded shape gets its graph once it has come often


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=Path, help="folder of pictures; by default drawn ones")
    parser.add_argument("--tiny", action="store_true", help="small pictures and few repeats, to rehearse")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    run = ModelRun(
        torch.device(arguments.device), pictures(arguments.images, 3 if arguments.tiny else 12), arguments.tiny
    )
    record = Record(arguments.output)
    record.measure("agreement", run.agreement)
    record.measure("company", run.company)
    record.measure("speed", run.speed)
    record.measure("best_batch_size", run.best_batch_size)
    record.measure("kernels", run.kernels)
    record.measure("memory_mib", run.memory_mib)


def pictures(folder: Path | None, count: int) -> list[Tensor]:
    """uint8 `[3, H, W]`."""
    if folder is None:
        data = SyntheticData("val", count=count, size_hw=PICTURE_HW)
        return [data[index][0] for index in range(count)]
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    return [read_image(path) for path in paths[:count]]


class ModelRun:
    """The measurements.

    Args:
        device: CUDA, or the CPU to rehearse.
        images: what agreement and company are measured on.
        tiny: small pictures and few repeats.
    """

    def __init__(self, device: torch.device, images: Sequence[Tensor], tiny: bool) -> None:
        self.device, self.images, self.tiny = device, images, tiny
        self.trained = self._checkpoint("bundled")
        self.random = lively(self._checkpoint("random"))
        self.precisions = ["fp32"] if tiny else [name for name in available_precisions(device) if name != "int8"]
        self.picture = torch.randint(0, 256, (3, *PICTURE_HW), dtype=torch.uint8)

    def _checkpoint(self, name: str) -> Checkpoint:
        checkpoint = resolve_checkpoint(name)
        if self.tiny:
            checkpoint = replace(
                checkpoint, info=replace(checkpoint.info, model_kwargs=checkpoint.info.model_kwargs | _TINY)
            )
        return checkpoint

    def _form(self, checkpoint: Checkpoint, precision: str) -> ServingModel:
        return serving_model(comparable(checkpoint), device=self.device, precision=precision)

    def agreement(self) -> dict[str, Any]:
        """With torchvision in fp32 on the same device, trained weights: what both find, and how far apart at most."""
        theirs = oracle(self.trained, self.device)
        wanted = []
        with torch.inference_mode(), exact_products():
            for image in self.images:
                found = theirs([image.to(self.device).float() / 255])[0]
                wanted.append(on_cpu(found))
        del theirs
        return {
            precision: self._compared(wanted, [on_cpu(form.detect([image])[0]) for image in self.images])
            for precision in self.precisions
            for form in [self._form(self.trained, precision)]
        }

    def company(self) -> dict[str, Any]:
        """The same image alone and in a batch of others, trained weights: how far apart its boxes and scores are."""
        largest = 2 if self.tiny else 16
        same_size = [image for image in self.images if image.shape == self.images[0].shape][:largest]
        results: dict[str, Any] = {}
        for precision in self.precisions:
            form = self._form(self.trained, precision)
            alone = [on_cpu(form.detect([image])[0]) for image in same_size]
            for size in (2, 4, 8, len(same_size)):
                if size > len(same_size) or f"{precision} of {size}" in results:
                    continue
                together = [on_cpu(found) for found in form.detect(same_size[:size])]
                again = [on_cpu(found) for found in form.detect(same_size[:size])]
                results[f"{precision} of {size}"] = self._compared(alone[:size], together) | {
                    "repeatable": all(is_equal(one, other) for one, other in zip(together, again, strict=True)),
                    "equal": all(is_equal(one, other) for one, other in zip(alone, together, strict=False)),
                }
        return results

    @staticmethod
    def _compared(wanted: Sequence[Detection], got: Sequence[Detection]) -> dict[str, Any]:
        boxes, scores, alike = 0.0, 0.0, 0
        shares = [share for one, other in zip(wanted, got, strict=True) if (share := agreement(one, other)) is not None]
        for one, other in zip(wanted, got, strict=True):
            if one["labels"].equal(other["labels"]):
                alike += 1
                boxes = max(boxes, largest_difference(one["boxes"], other["boxes"]))
                scores = max(scores, largest_difference(one["scores"], other["scores"]))
        return {
            "images": len(wanted),
            "same_labels": alike,  # in the same order; boxes and scores are compared in these
            "box_px": round(boxes, 5),
            "score": round(scores, 7),
            "least_share_found": round(min(shares), 4) if shares else None,
        }

    def speed(self) -> dict[str, float]:
        """Images a second by form and batch size, of a picture of 480x640 on the host (ours) or the device (theirs)."""
        rates = self._torchvision_speed()
        for precision in self.precisions:
            form = self._form(self.random, precision)
            narrow = precision in {"fp16", "bf16"}
            for size in (1, 2) if self.tiny else (1, 2, 4, 8, 16, 32) if narrow else (1, 8):
                batch = [self.picture] * size
                seconds = self._seconds(partial(form.detect, batch), warm_up=2 if self.tiny else _WARM_UP)
                rates[f"ours {precision} x{size}"] = size / seconds
        return {name: round(rate, 2) for name, rate in rates.items()}

    def _torchvision_speed(self) -> dict[str, float]:
        theirs, image = oracle(self.random, self.device), self.picture.to(self.device).float() / 255
        half = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        rates: dict[str, float] = {}
        with torch.inference_mode(), exact_products():
            for name, sizes, narrow in (("fp32", (1, 8), False), ("autocast", (1, 4, 8, 16), True)):
                if narrow and self.tiny:  # processors without 16-bit arithmetic take minutes
                    continue
                for size in sizes[: 1 if self.tiny else None]:
                    with torch.autocast(self.device.type, half, enabled=narrow):
                        seconds = self._seconds(partial(theirs, [image] * size), warm_up=2)
                    rates[f"torchvision {name} x{size}"] = size / seconds
        return rates

    def best_batch_size(self) -> int:
        """By the service's search, without its bounds."""
        form = self._form(self.random, self._served)
        picture = torch.full((3, *PICTURE_HW), 127, dtype=torch.uint8)
        return best_batch_size(lambda count: form.detect([picture] * count), largest=2 if self.tiny else 64, gain=1.05)

    def kernels(self) -> dict[str, Any]:
        """The time of each kernel in a batch, the longest first."""
        form = self._form(self.random, self._served)
        activity = ProfilerActivity.CUDA if self.device.type == "cuda" else ProfilerActivity.CPU
        return {
            f"{self._served} x{size}": self._profile(partial(form.detect, [self.picture] * size), activity)
            for size in ((1,) if self.tiny else (1, 16))
        }

    def _profile(self, run: Callable[[], object], activity: ProfilerActivity) -> list[dict[str, Any]]:
        rounds = 1 if self.tiny else 5
        for _ in range(1 if self.tiny else _WARM_UP):
            run()
        self._wait()
        with profile(activities=[activity]) as profiler:
            for _ in range(rounds):
                run()
            self._wait()
        on_gpu = activity is ProfilerActivity.CUDA
        times = [
            (
                event.key,
                (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / rounds / 1000,
                event.count,
            )
            for event in profiler.key_averages()
        ]
        total = sum(milliseconds for _, milliseconds, _ in times)
        longest = sorted(times, key=lambda entry: -entry[1])[:40]
        return [
            {"kernel": name[:120], "ms": round(ms, 4), "share": round(ms / total, 4), "calls": count // rounds}
            for name, ms, count in longest
        ]

    def memory_mib(self) -> dict[str, float]:
        if self.device.type != "cuda":
            return {}
        return {
            "allocated": round(torch.cuda.memory_allocated() / 2**20),
            "reserved": round(torch.cuda.memory_reserved() / 2**20),
            "most": round(torch.cuda.max_memory_allocated() / 2**20),
        }

    @property
    def _served(self) -> str:
        return "fp16" if "fp16" in self.precisions else self.precisions[-1]

    def _seconds(self, run: Callable[[], object], *, warm_up: int) -> float:
        """The median of a few runs."""
        for _ in range(warm_up):
            run()
        seconds = []
        for _ in range(2 if self.tiny else _REPEATS):
            self._wait()
            started = time.perf_counter()
            run()
            self._wait()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class exact_products:  # noqa: N801 - a context, named as torch names its own
    """float32 products in full, whatever the default is."""

    def __enter__(self) -> None:
        self._before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self._before


def on_cpu(found: Detection) -> Detection:
    return Detection(boxes=found["boxes"].cpu(), labels=found["labels"].cpu(), scores=found["scores"].cpu())


def is_equal(one: Detection, other: Detection) -> bool:
    return all(one[key].equal(other[key]) for key in ("boxes", "labels", "scores"))  # type: ignore[literal-required]


def largest_difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max()) if one.numel() else 0.0


if __name__ == "__main__":
    main()
