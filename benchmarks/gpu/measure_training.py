"""Training: the rate of its input without a model, and of its updates.

Run by `run.py`; alone: `python benchmarks/gpu/measure_training.py --output training.json --device cuda`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from record import Record
from torch.profiler import ProfilerActivity, profile

from model.architectures import FASTERRCNN_RESNET50_FPN
from model.data.samples import DetectionData
from model.data.sources import open_data
from model.data.synthetic import SyntheticData
from model.evaluation.average_precision import Metrics
from model.training.augmentation import Augmentation
from model.training.batches import batches
from model.training.detector import untrained_detector
from model.training.loading import load_ahead, targets_to_device, to_device
from model.training.processes import joined_processes
from model.training.settings import TrainSettings
from model.training.trainer import Trainer

SIZE_HW = (480, 640)
_SKIPPED = 10  # updates at the start, which are slower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", default="cuda", help="meta for the input without any device")
    parser.add_argument("--data", help="a Pascal VOC folder or COCO data; by default synthetic pictures")
    parser.add_argument("--iterations", type=int, default=120)
    parser.add_argument("--tiny", action="store_true", help="small pictures and few updates, to rehearse")
    arguments = parser.parse_args()
    record = Record(arguments.output)
    tiny = arguments.tiny
    if arguments.data:
        data, validation = (open_data(arguments.data, split)[0] for split in ("train", "val"))
    else:
        hw = (96, 128) if tiny else SIZE_HW
        data, validation = SyntheticData("train", count=64, size_hw=hw), SyntheticData("val", count=8, size_hw=hw)
    record.measure("input", lambda: input_rates(data, arguments.device, 4 if tiny else 16))
    if arguments.device == "meta":
        return
    iterations = 4 if tiny else arguments.iterations
    sizes = {"min_size": 96, "max_size": 128} if tiny else {"min_size": SIZE_HW[0], "max_size": SIZE_HW[1]}
    settings = TrainSettings(
        iterations=iterations, batch_size=2 if tiny else 16, live_norm=True, trainable_layers=5, save_every=0, **sizes
    )
    record.measure("updates", lambda: update_rates(data, validation, settings, arguments.device, record))


def input_rates(data: DetectionData, device_name: str, batch_size: int) -> dict[str, float]:
    """Images a second that a model would get that takes no time, from files and again from memory."""
    device = torch.device(device_name)
    sizes = [data.size_hw(index) for index in range(len(data))]
    count = max(1, min(len(data), 192) // batch_size)
    rates = {}
    for name in ("first", "again", "third"):
        order = ([batch] for batch in itertools.islice(batches(sizes, batch_size, seed=0), count))
        augmentation = Augmentation(colour=0.1)
        started = time.perf_counter()
        with load_ahead(data, order, pin=device.type == "cuda") as loaded:
            for (shard,) in loaded:
                changed = [augmentation(to_device(image, device), target, transpose=False) for image, target in shard]
                targets_to_device([target for _, target in changed], device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        rates[name] = round(count * batch_size / (time.perf_counter() - started), 1)
    return rates


class Clock:
    """Notes when each update ended, and profiles a few of them near the end.

    Args:
        first, last: the updates that are profiled; their own times do not count.
    """

    def __init__(self, first: int, last: int, on_gpu: bool) -> None:
        self.ends: list[float] = []
        self.ap: float | None = None
        self._first, self._last = first, last
        self.profiler = profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])

    def updated(self, iteration: int, losses: Mapping[str, float], learning_rate: float) -> None:
        del losses, learning_rate
        self.ends.append(time.perf_counter())
        if iteration == self._first:
            self.profiler.start()
        if iteration == self._last:
            self.profiler.stop()

    def evaluated(self, iteration: int, metrics: Metrics, is_best: bool) -> None:
        del iteration, is_best
        self.ap = metrics.overall.ap

    def seconds(self) -> list[float]:
        ended = self.ends[: self._first]
        return [after - before for before, after in itertools.pairwise(ended)]


def update_rates(
    data: DetectionData, validation: DetectionData, settings: TrainSettings, device: str, record: Record
) -> dict[str, Any]:
    """Median seconds of an update from scratch in bf16, and the AP that the run ends with."""
    iterations = settings.iterations
    clock = Clock(iterations - max(1, iterations // 20), iterations, device == "cuda")
    torch.manual_seed(settings.seed)
    processor = time.process_time()
    with tempfile.TemporaryDirectory() as folder, joined_processes(device) as processes:
        Trainer(
            model=untrained_detector(FASTERRCNN_RESNET50_FPN, data.categories, settings),
            categories=data.categories,
            data=data,
            validation=validation,
            settings=settings,
            folder=Path(folder),
            processes=processes,
            listeners=[clock],
        ).run()
    seconds = clock.seconds()
    median = statistics.median(seconds[_SKIPPED:] or seconds)
    record.keep("kernels", longest(clock, device == "cuda", iterations - clock._first))
    return {
        "iterations": iterations,
        "batch_size": settings.batch_size,
        "update_s": round(median, 4),
        "images_per_s": round(settings.batch_size / median, 1),
        "processor_s": round(time.process_time() - processor, 1),
        "cores": os.cpu_count(),
        "ap": clock.ap,
    }


def longest(clock: Clock, on_gpu: bool, rounds: int) -> list[dict[str, Any]]:
    """The kernels of an update, the longest first."""
    times = [
        (event.key, (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000 / max(1, rounds))
        for event in clock.profiler.key_averages()
    ]
    return [
        {"kernel": name[:120], "ms": round(milliseconds, 3)}
        for name, milliseconds in sorted(times, key=lambda entry: -entry[1])[:30]
    ]


if __name__ == "__main__":
    main()
