from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from service.devices.detector import Detections
from service.devices.device import Device, DeviceHungError, DeviceMemoryError
from service.images.pictures import Picture
from tests.support.fakes import FakeDetector, red_picture

pytestmark = pytest.mark.anyio


def device(detector: FakeDetector, *, hang: float = 20.0, canary: float = 20.0) -> Device:
    return Device(detector, reload=lambda _: detector, max_batch_size=8, hang_timeout_s=hang, canary_timeout_s=canary)


async def test_the_host_running_out_of_memory_lowers_the_cap() -> None:
    class Greedy(FakeDetector):
        def detect(self, images: Sequence[Tensor]) -> list[Detections]:
            torch.empty(1 << 60, dtype=torch.uint8)
            raise AssertionError("there is that much memory")

    greedy = device(Greedy())
    with pytest.raises(DeviceMemoryError, match="memory"):
        await greedy.detect([Picture(red_picture(n)) for n in range(6)])
    assert greedy.cap.now == 3
    assert greedy.failure is None
    greedy.close()


async def test_answers_that_do_not_match_the_images_are_nobodys() -> None:
    class Forgetful(FakeDetector):
        def detect(self, images: Sequence[Tensor]) -> list[Detections]:
            return super().detect(images)[1:]

    forgetful = device(Forgetful())
    with pytest.raises(RuntimeError, match="1 answers for 2 images"):
        await forgetful.detect([Picture(red_picture(n)) for n in range(2)])
    forgetful.close()


async def test_a_canary_has_a_patience_of_its_own() -> None:
    detector = FakeDetector()
    one = device(detector, canary=0.1)
    detector.gate.clear()
    assert not await one.check()
    assert one.failure == "cpu has not answered for 0.1 s"
    detector.gate.set()
    async with asyncio.timeout(20):
        while not await one.check():
            pass
    assert one.failure is None
    one.close()


async def test_a_call_that_was_given_up_keeps_its_detector_to_itself() -> None:
    stuck, fresh = FakeDetector(), FakeDetector()
    stuck.gate.clear()
    one = Device(stuck, reload=lambda _: fresh, max_batch_size=8, hang_timeout_s=1, canary_timeout_s=20)
    with pytest.raises(DeviceHungError):
        await one.detect([Picture(red_picture(1))])
    assert await one.check()
    for n in range(2, 5):
        await one.detect([Picture(red_picture(n))])
        assert await one.check()  # an idle canary loads nothing again, though the old thread still hangs
    assert one.detector is fresh
    assert len(stuck.batches) == 1
    assert one.busy
    stuck.gate.set()
    async with asyncio.timeout(20):
        while one.busy:
            await asyncio.sleep(0.01)
    one.close()
