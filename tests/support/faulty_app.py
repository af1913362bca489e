"""A real server process around a detector whose faults its callers order; `faulty_server` runs it as a script.

The first pixel of a picture says what is to happen: red and green are its number, which the answer repeats, and blue is
a `Fault`, if the second pixel is `SIGNED`. In int8 the detector is never done being calibrated. Settings come from the
environment, as ever; so do these:

    FAULTY_BATCH_S   seconds that a batch takes, however large it is
    FAULTY_LOAD_S    seconds until the model is loaded
    FAULTY_BUILD     a file of weights: at each load its detector is read and built, and does nothing but take the time
    FAULTY_SLOW_PX   pictures of this width are never done being decoded
    FAULTY_RAN       a file that gets a line per batch: the numbers of its pictures
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import sys
import threading
import time
import zlib
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.build import from_checkpoint, resolve_checkpoint
from model.inference.build import serving_model
from model.weights.categories import Categories
from model.weights.checkpoints import WeightsError
from service.devices.detector import Detections, Detector, ModelInfo
from service.server import serve
from service.settings import Settings


class Fault(IntEnum):
    NONE = 0
    RAISES = 1
    KILLS_THE_THREAD = 2
    HANGS = 3
    NEEDS_MUCH_MEMORY = 4  # so that no more than two of a batch fit
    BREAKS_THE_DEVICE = 5  # for a second
    HANGS_LATER = 6  # is answered, but the device hangs on whatever comes next


SIGNED = (13, 37, 42)
CPU = torch.device("cpu")


class FaultyDetector:
    precision = "fp32"
    backend = "torch"
    best_batch_size = 1

    def __init__(self, device: str, info: ModelInfo) -> None:
        self.device = device
        self.info = info
        self.is_interim = False
        self._batch_s = float(os.environ.get("FAULTY_BATCH_S", "0"))
        self._ran = Path(os.environ["FAULTY_RAN"])
        self._slow_px = int(os.environ.get("FAULTY_SLOW_PX", "0"))
        self._broken_until = 0.0
        self._hangs = False

    def padded_shape(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        if size_hw[1] == self._slow_px:
            threading.Event().wait()
        return -(-size_hw[0] // 32) * 32, -(-size_hw[1] // 32) * 32

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        firsts = [image[:, 0, 0].tolist() for image in images]
        numbers = [256 * red + green for red, green, _ in firsts]
        signed = [tuple(image[:, 0, 1:2].flatten().tolist()) == SIGNED for image in images]
        faults = {blue for (*_, blue), obeyed in zip(firsts, signed, strict=True) if obeyed}
        with self._ran.open("a") as ran:
            print(*numbers, file=ran)
        time.sleep(self._batch_s)
        if Fault.RAISES in faults:
            raise RuntimeError("one of these pictures is too much for me")
        if Fault.KILLS_THE_THREAD in faults:
            raise SystemExit
        if Fault.HANGS in faults or self._hangs:
            threading.Event().wait()
        if Fault.NEEDS_MUCH_MEMORY in faults and len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self._hangs = Fault.HANGS_LATER in faults
        if Fault.BREAKS_THE_DEVICE in faults:
            self._broken_until = time.monotonic() + 1
        if time.monotonic() < self._broken_until:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return [
            Detections(
                boxes=np.array([[number, 1, number + 1, 2]], dtype=np.float32),
                labels=np.array([1]),
                scores=np.array([zero_to_one(image)], dtype=np.float32),
            )
            for number, image in zip(numbers, images, strict=True)
        ]


def zero_to_one(image: Tensor) -> float:
    """A score that depends on every pixel."""
    return zlib.crc32(image.numpy().tobytes()) % 997 / 997


def load(settings: Settings) -> list[Detector]:
    time.sleep(float(os.environ.get("FAULTY_LOAD_S", "0")))
    if file := os.environ.get("FAULTY_BUILD"):
        model = from_checkpoint(resolve_checkpoint(file), min_size=64)
        form = serving_model(model, device=CPU, precision="fp32")
        form.detect([torch.zeros(3, 64, 64, dtype=torch.uint8)])
    detector = FaultyDetector("cpu" if settings.device == "auto" else settings.device, info_of(settings.weights))
    if settings.precision == "int8":
        if settings.calibrate_first:
            threading.Event().wait()
        detector.is_interim = True
    return [detector]


def info_of(weights: str) -> ModelInfo:
    """What a file of weights tells: its text is the name of the only class. A name such as COCO_V1 is no file."""
    name, version = "person", ""
    if "/" in weights:
        if not Path(weights).is_file():
            raise WeightsError(f"no such file of weights: {weights}")
        name = Path(weights).read_text()
        version = hashlib.sha256(name.encode()).hexdigest()[:12]
    return ModelInfo("fasterrcnn_resnet50_fpn", "faulty", Categories.of_objects([name]), version=version)


if __name__ == "__main__":
    logging.basicConfig(level="INFO", stream=sys.stdout)
    settings = Settings()
    listener = socket.create_server(("127.0.0.1", settings.port), backlog=1024)
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    serve(settings, listener, load=load)
    sys.exit(1)
