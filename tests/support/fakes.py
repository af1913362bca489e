"""Detectors that need no model, and pictures that say who they are."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.images.opened import Pixels
from model.weights.categories import Categories
from service.devices.canary import known_picture
from service.devices.detector import Detections, ModelInfo
from service.images.pictures import pageable

CANARY_RED = int(known_picture()[0, 0, 0])  # of the picture that devices are checked with
CATEGORIES = Categories.of_objects(["person", "bicycle", "car", "dog"])


class FakeDetector:
    """Finds two objects in each picture, placed and scored by the picture's first red value.

    Args:
        seconds: how long a batch takes.
        fails_on: red values that it raises on.
        kills_on: red values that end the thread that calls it.
        memory: most pictures that it has memory for, besides the small one that checks it.
    """

    def __init__(
        self,
        *,
        seconds: float = 0.0,
        fails_on: frozenset[int] = frozenset(),
        kills_on: frozenset[int] = frozenset(),
        memory: int = 1000,
        device: str = "cpu",
    ) -> None:
        self.info = ModelInfo("fasterrcnn_resnet50_fpn", "fake", CATEGORIES, version="fa4e01234567")
        self.device = device
        self.precision, self.backend = "fp32", "torch"
        self.best_batch_size = 1
        self.seconds = seconds
        self.fails_on = fails_on
        self.kills_on = kills_on
        self.memory = memory
        self.batches: list[list[tuple[int, int, int]]] = []  # (red value, height, width) of each picture
        self.started = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def padded_shape(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        return -(-size_hw[0] // 32) * 32, -(-size_hw[1] // 32) * 32

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        reds = [int(image[0, 0, 0]) for image in images]
        self.batches.append([(red, *image.shape[1:]) for red, image in zip(reds, images, strict=True)])
        self.started.set()
        assert self.gate.wait(20)
        time.sleep(self.seconds)
        if bad := self.fails_on.intersection(reds):
            raise RuntimeError(f"cannot look at {sorted(bad)}")
        if self.kills_on.intersection(reds):
            raise SystemExit
        if len(images) > self.memory and reds != [CANARY_RED]:
            raise torch.OutOfMemoryError(f"no memory for {len(images)}")
        return [self.expected(red) for red in reds]

    @staticmethod
    def expected(red: int) -> Detections:
        return Detections(
            boxes=np.array([[red, 1, red + 4, 9], [2, 3, 12, 23]], dtype=np.float32),
            labels=np.array([1, 4]),
            scores=np.array([0.9, 0.3], dtype=np.float32),
        )


class FakeGPU(FakeDetector):
    """The same on a device that works by itself, as `Pipelined` says: it runs what is launched in its order.

    The arguments are those of `FakeDetector`. What a batch raises is raised where it is waited for, except a lack of
    memory, which stops its launch.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._stream = ThreadPoolExecutor(1)
        self.launched = 0
        self.fetched = 0
        self.most_in_flight = 0
        self.prepared = 0
        self.to_prepare = 0

    def allocate(self, shape: tuple[int, int, int]) -> Pixels:
        return pageable(shape)

    def upload(self, image: Tensor) -> Tensor:
        return image.clone()

    def launch(self, images: Sequence[Tensor]) -> FakeLaunched:
        if len(images) > self.memory and int(images[0][0, 0, 0]) != CANARY_RED:
            super().detect(images)
        self.launched += 1
        self.most_in_flight = max(self.most_in_flight, self.launched - self.fetched)
        return FakeLaunched(self, self._stream.submit(super().detect, list(images)))

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        launched = self.launch(images)
        launched.wait()
        return launched.fetch()

    def prepare(self) -> bool:
        self.prepared += 1
        self.to_prepare -= 1
        return self.to_prepare > 0


class FakeLaunched:
    def __init__(self, device: FakeGPU, result: Future[list[Detections]]) -> None:
        self._device = device
        self._result = result

    def wait(self) -> None:
        try:
            self._result.result()
        except BaseException:
            self._device.fetched += 1
            raise

    def fetch(self) -> list[Detections]:
        self._device.fetched += 1
        return self._result.result()


def red_picture(red: int, size_hw: tuple[int, int] = (32, 32)) -> Tensor:
    """A uint8 `[3, H, W]` picture of one colour."""
    pixels = torch.zeros((3, *size_hw), dtype=torch.uint8)
    pixels[0] = red
    return pixels


def red_png(red: int, size_hw: tuple[int, int] = (32, 32)) -> bytes:
    """The same as a file."""
    buffer = io.BytesIO()
    Image.fromarray(red_picture(red, size_hw).permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()
