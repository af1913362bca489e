"""Two batches in flight: see test_batcher.py for what holds with one as well."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.images.opened import Pixels
from service.batching.batcher import Batcher
from service.devices.staging import StagingBuffer, Uploads
from service.errors import InferenceError, UnavailableError
from service.images.pictures import Picture, from_pixels
from tests.support.batchers import running
from tests.support.fakes import FakeGPU, FakeLaunched, red_picture

pytestmark = pytest.mark.anyio


def submitted(batcher: Batcher, picture: Tensor) -> asyncio.Task[Any]:
    return asyncio.create_task(batcher.submit(Picture(picture)))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_full_batch_is_launched_while_another_runs_and_never_a_third() -> None:
    device = FakeGPU()
    device.gate.clear()
    async with running(device, max_batch_size=2) as batcher:
        tasks = [submitted(batcher, red_picture(0))]
        await until(lambda: device.launched == 1)
        tasks += [submitted(batcher, red_picture(n)) for n in range(1, 6)]
        await until(lambda: device.launched == 2)
        await asyncio.sleep(0.05)
        assert device.launched == 2
        device.gate.set()
        answers = await asyncio.gather(*tasks)
    assert [answer.detections.boxes[0, 0] for answer in answers] == list(range(6))
    assert [[red for red, _, _ in batch] for batch in device.batches] == [[0], [1, 2], [3, 4], [5]]
    assert device.most_in_flight == 2


async def test_what_does_not_fill_a_batch_gathers_until_the_one_ahead_is_nearly_over() -> None:
    device = FakeGPU(seconds=0.2)
    async with running(device) as batcher:
        await submitted(batcher, red_picture(0))  # so that it is known how long one takes
        ahead = submitted(batcher, red_picture(1))
        await until(lambda: device.launched == 2)
        behind = [submitted(batcher, red_picture(n)) for n in range(2, 6)]
        await asyncio.sleep(0.02)
        assert device.launched == 2
        await asyncio.gather(ahead, *behind)
    assert [[red for red, _, _ in batch] for batch in device.batches] == [[0], [1], [2, 3, 4, 5]]


async def test_a_batch_that_fails_costs_the_one_behind_it_nothing() -> None:
    device = FakeGPU(fails_on=frozenset({1}))
    device.gate.clear()
    async with running(device, max_batch_size=1) as batcher:
        tasks = [submitted(batcher, red_picture(n)) for n in (1, 2, 3)]
        await until(lambda: device.launched == 2)
        device.gate.set()
        outcomes: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[0], InferenceError)
    assert [outcome.detections.boxes[0, 0] for outcome in outcomes[1:]] == [2, 3]
    ran = [batch[0][0] for batch in device.batches]
    assert ran.count(2) == 1  # it was in flight, and not thrown away


async def test_memory_that_runs_out_at_the_second_launch_splits_that_batch_alone() -> None:
    device = FakeGPU(memory=2)
    device.gate.clear()
    async with running(device, max_batch_size=4) as batcher:
        tasks = [submitted(batcher, red_picture(0))]
        await until(lambda: device.launched == 1)
        device.gate.set()
        device.seconds = 0.05
        tasks += [submitted(batcher, red_picture(n)) for n in range(1, 5)]
        answers = await asyncio.gather(*tasks)
        assert batcher.batch_caps == {"cpu": 2}
    assert [answer.detections.boxes[0, 0] for answer in answers] == list(range(5))


async def test_a_hang_frees_the_callers_of_both_batches_after_one_timeout() -> None:
    device = FakeGPU()
    device.gate.clear()
    async with running(device, max_batch_size=1, hang=0.3) as batcher:
        tasks = [submitted(batcher, red_picture(n)) for n in (1, 2)]
        await until(lambda: device.launched == 2)
        outcomes: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [UnavailableError] * 2
        assert "hangs" in str(outcomes[0])
        assert "hangs" not in str(outcomes[1])  # it was not waited for
        device.gate.set()
        await until(lambda: batcher.failure is None)
        assert (await submitted(batcher, red_picture(3))).detections.boxes[0, 0] == 3


async def test_a_hang_in_a_launch_leaves_no_exception_behind() -> None:
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["message"]))
    device = FakeGPU()
    device.gate.clear()
    launch = device.launch

    def launch_one(images: Sequence[Tensor]) -> FakeLaunched:
        if device.launched:
            assert device.gate.wait(20)
        return launch(images)

    device.launch = launch_one
    async with running(device, max_batch_size=1, hang=0.2) as batcher:
        tasks = [submitted(batcher, red_picture(n)) for n in (1, 2)]
        outcomes: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [UnavailableError] * 2
        device.gate.set()
        await until(lambda: batcher.failure is None)
    gc.collect()  # asyncio reports an exception that nobody has read when its task is freed
    await asyncio.sleep(0)
    assert reported == []


async def test_after_a_hang_another_device_takes_the_batch_that_had_not_begun() -> None:
    stuck, well = FakeGPU(device="cuda:0"), FakeGPU(device="cuda:1")
    stuck.gate.clear()
    well.gate.clear()
    async with running(stuck, well, max_batch_size=1, hang=0.5) as batcher:
        tasks = [submitted(batcher, red_picture(n)) for n in range(4)]
        await until(lambda: stuck.launched == well.launched == 2)
        well.gate.set()
        outcomes: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        ours = stuck.batches[0][0][0]
        assert isinstance(outcomes.pop(ours), UnavailableError)
        assert [one.detections.boxes[0, 0] for one in outcomes] == [n for n in range(4) if n != ours]


async def test_a_quiet_device_prepares_and_a_request_interrupts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.batching.device_worker._QUIET_S", 0.05)
    device = FakeGPU()
    device.to_prepare = 5
    async with running(device) as batcher:
        await until(lambda: device.prepared == 5)
        await asyncio.sleep(0.15)
        assert device.prepared == 5  # nothing is left, so it is not asked again
        device.to_prepare = 2
        await submitted(batcher, red_picture(1))  # which may be of a new shape
        await until(lambda: device.prepared == 7)


async def test_preparing_that_fails_leaves_the_device_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.batching.device_worker._QUIET_S", 0.01)

    class Unprepared(FakeGPU):
        error: Exception = torch.OutOfMemoryError("CUDA out of memory")

        def prepare(self) -> bool:
            super().prepare()
            raise self.error

    device = Unprepared()
    async with running(device) as batcher:
        await until(lambda: device.prepared == 1)
        device.error = RuntimeError("cannot capture")
        assert (await submitted(batcher, red_picture(1))).batch_size == 1
        await until(lambda: device.prepared == 2)
        assert (await submitted(batcher, red_picture(2))).batch_size == 1
        assert batcher.failure is None


async def test_ten_thousand_pictures_through_a_buffer_that_overflows_get_their_own_answers() -> None:
    """Decoders that fill slots, copies that take their time, two batches in flight, callers who leave or are late."""
    staging = StagingBuffer(torch.empty(1 << 16, dtype=torch.uint8))
    stream = ThreadPoolExecutor(1)

    class Copying(FakeGPU):
        """Its copies are made behind the callers' back, from memory that must still be theirs."""

        def __init__(self) -> None:
            super().__init__()
            self.uploads = Uploads(self._copy, self._mark)
            self.staged = self.pageable = 0

        def _copy(self, image: Tensor) -> Tensor:
            sent = torch.zeros_like(image)
            self.last = stream.submit(lambda: sent.copy_(image))
            return sent

        def _mark(self) -> Any:
            last = self.last
            return type("Mark", (), {"query": lambda _: last.done()})()

        def allocate(self, shape: tuple[int, int, int]) -> Pixels:
            pixels = staging.allocate(shape)
            if np.shares_memory(pixels, staging._memory.numpy()):
                self.staged += 1
            else:
                self.pageable += 1
            return pixels

        def upload(self, image: Tensor) -> Tensor:
            return self.uploads.send(image)

        def launch(self, images: Sequence[Tensor]) -> FakeLaunched:
            stream.submit(lambda: None).result()  # as the device's stream waits for that of the copies
            return super().launch(images)

    def pixels(number: int, draw: random.Random) -> Pixels:
        height, width = draw.choice([(8, 8), (33, 20), (64, 48), (90, 100), (200, 180)])
        picture = np.zeros((height, width, 3), np.uint8)
        picture[0, 0, 0] = number % 256
        return picture

    device, decoders, draw = Copying(), ThreadPoolExecutor(4), random.Random(0)
    outcomes = dict.fromkeys(("answered", "left", "failed to decode"), 0)

    async def call(batcher: Batcher, number: int) -> None:
        def decode() -> Picture:
            picture = from_pixels(pixels(number, draw), allocate=batcher.allocate)
            if number % 50 == 7:
                raise ValueError("broken")
            return batcher.upload_early(picture)

        try:
            picture = await asyncio.get_running_loop().run_in_executor(decoders, decode)
        except ValueError:
            outcomes["failed to decode"] += 1
            return
        task = submitted(batcher, picture.pixels) if number % 3 else submit_sent(batcher, picture)
        if number % 20 == 3:
            await asyncio.sleep(0)
            task.cancel()
        try:
            answer = await task
        except asyncio.CancelledError:
            outcomes["left"] += 1
            return
        assert answer.detections.boxes[0, 0] == number % 256
        outcomes["answered"] += 1

    def submit_sent(batcher: Batcher, picture: Picture) -> asyncio.Task[Any]:
        return asyncio.create_task(batcher.submit(picture))

    async def caller(batcher: Batcher, numbers: range) -> None:
        for number in numbers:
            await call(batcher, number)

    async with running(device, max_batch_size=8) as batcher:
        await asyncio.gather(*(caller(batcher, range(start, 10_000, 64)) for start in range(64)))
    assert sum(outcomes.values()) == 10_000
    assert outcomes["failed to decode"] == 200
    assert outcomes["answered"] > 9000
    assert device.staged > 1000
    assert device.pageable > 100
    assert device.most_in_flight == 2
    stream.shutdown()
    device.uploads.release_finished()
    assert staging.free == [(0, 1 << 16)]
