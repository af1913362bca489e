from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from model.images.opened import Pixels
from service.batching.batch_queue import Priority
from service.batching.batcher import Batcher
from service.batching.device_worker import logger as worker_logger
from service.errors import InferenceError, UnavailableError
from service.images.pictures import Picture
from service.web.problems import release_frames
from tests.support.batchers import running
from tests.support.fakes import CANARY_RED, FakeDetector, FakeGPU, red_picture

pytestmark = pytest.mark.anyio


Fakes = type[FakeDetector]
DETECTORS: dict[str, Fakes] = {"one in flight": FakeDetector, "two in flight": FakeGPU}


@pytest.fixture(params=DETECTORS)
def fake(request: pytest.FixtureRequest) -> Fakes:
    return DETECTORS[request.param]


async def started(detector: FakeDetector) -> None:
    assert await asyncio.to_thread(detector.started.wait, 20)


async def test_64_callers_of_two_shapes_share_batches_and_get_their_own_answers(fake: Fakes) -> None:
    detector = fake(seconds=0.05)
    shapes = [(64, 32), (32, 64)]
    async with running(detector) as batcher:
        answers = await asyncio.gather(*(batcher.submit(Picture(red_picture(n, shapes[n % 2]))) for n in range(64)))

    for n, answer in enumerate(answers):
        assert answer.detections.boxes[0, 0] == n
    sizes = [len(batch) for batch in detector.batches]
    assert sum(sizes) == 64
    assert sum(sizes) / len(sizes) >= 6
    for batch in detector.batches:
        assert len({(height, width) for _, height, width in batch}) == 1
    # Oldest first: each batch starts with the oldest picture that had not run yet.
    waiting = list(range(64))
    for batch in detector.batches:
        assert batch[0][0] == waiting[0]
        for red, _, _ in batch:
            waiting.remove(red)
    for answer in answers:
        assert answer.batch_size in sizes


async def test_an_idle_device_starts_a_lone_picture_at_once(fake: Fakes) -> None:
    detector = fake()
    detector.gate.clear()
    async with running(detector) as batcher:
        lone = asyncio.create_task(batcher.submit(Picture(red_picture(1))))
        await started(detector)  # it runs although nobody else has come, and nobody ever will
        assert detector.batches == [[(1, 32, 32)]]
        detector.gate.set()
        assert (await lone).batch_size == 1


async def test_while_a_device_works_requests_gather(fake: Fakes) -> None:
    detector = fake()
    detector.gate.clear()
    async with running(detector, max_batch_size=3) as batcher:
        tasks = [asyncio.create_task(batcher.submit(Picture(red_picture(0))))]
        await started(detector)
        tasks += [asyncio.create_task(batcher.submit(Picture(red_picture(n)))) for n in range(1, 6)]
        await asyncio.sleep(0.05)
        detector.gate.set()
        await asyncio.gather(*tasks)
    assert [[red for red, _, _ in batch] for batch in detector.batches] == [[0], [1, 2, 3], [4, 5]]


async def test_a_delay_waits_for_company(fake: Fakes) -> None:
    detector = fake()
    async with running(detector, max_batch_size=2, delay=5.0) as batcher:
        first = asyncio.create_task(batcher.submit(Picture(red_picture(1))))
        await asyncio.sleep(0.05)
        assert not detector.batches
        await batcher.submit(Picture(red_picture(2)))
        await first
    assert [len(batch) for batch in detector.batches] == [2]


async def test_several_devices_feed_from_one_queue(fake: Fakes) -> None:
    detectors = [fake(seconds=0.02, device=f"cuda:{n}") for n in range(2)]
    async with running(*detectors, max_batch_size=2) as batcher:
        answers = await asyncio.gather(*(batcher.submit(Picture(red_picture(n))) for n in range(20)))
    assert [answer.detections.boxes[0, 0] for answer in answers] == list(range(20))
    assert all(detector.batches for detector in detectors)
    assert sum(len(batch) for detector in detectors for batch in detector.batches) == 20


EVERYTHING = frozenset(range(256))


async def gathered(batcher: Batcher, detector: FakeDetector, reds: range) -> list[asyncio.Task[Any]]:
    """Callers whose pictures wait together behind one that runs and is held."""
    detector.gate.clear()
    tasks = [asyncio.create_task(batcher.submit(Picture(red_picture(200))))]
    await started(detector)
    tasks += [asyncio.create_task(batcher.submit(Picture(red_picture(n)))) for n in reds]
    await asyncio.sleep(0.05)
    return tasks


async def test_only_the_guilty_picture_of_a_batch_fails(fake: Fakes) -> None:
    detector = fake(fails_on=frozenset({5}))
    async with running(detector) as batcher:
        tasks = await gathered(batcher, detector, range(1, 9))
        detector.gate.set()
        outcomes: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(outcomes[5], InferenceError)
        for n in (1, 2, 3, 4, 6, 7, 8):
            assert outcomes[n].detections.boxes[0, 0] == n
        assert batcher.failure is None


async def test_one_bad_picture_alone_does_not_make_the_device_look_ill(fake: Fakes) -> None:
    async with running(fake(fails_on=frozenset({5}))) as batcher:
        with pytest.raises(InferenceError):
            await batcher.submit(Picture(red_picture(5)))
        assert batcher.failure is None
        assert (await batcher.submit(Picture(red_picture(6)))).detections.boxes[0, 0] == 6


async def test_the_search_for_the_guilty_skips_those_who_left(fake: Fakes) -> None:
    detector = fake(fails_on=frozenset({1}))
    async with running(detector) as batcher:
        tasks = await gathered(batcher, detector, range(1, 5))
        detector.started.clear()
        detector.gate.set()
        await tasks[0]
        for task in tasks[2:]:
            task.cancel()  # while their batch runs, or after
        await asyncio.gather(*tasks, return_exceptions=True)
    assert all(len(batch) > 1 or batch[0][0] in {200, 1, CANARY_RED} for batch in detector.batches)


async def test_a_device_that_fails_on_everything_is_failing_until_it_recovers(fake: Fakes) -> None:
    detector = fake(fails_on=EVERYTHING)
    async with running(detector) as batcher:
        with pytest.raises(UnavailableError):
            await batcher.submit(Picture(red_picture(1)))
        assert batcher.failure == "cpu: RuntimeError"
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(batcher.submit(Picture(red_picture(2))), 0.1)
        detector.fails_on = frozenset()
        while batcher.failure is not None:
            await asyncio.sleep(0.01)
        answer = await batcher.submit(Picture(red_picture(2)))
        assert answer.detections.boxes[0, 0] == 2


async def test_when_the_last_device_fails_all_who_wait_are_told_at_once(fake: Fakes) -> None:
    detector = fake(fails_on=EVERYTHING)
    async with running(detector, max_batch_size=2) as batcher:
        tasks = await gathered(batcher, detector, range(1, 8))
        detector.gate.set()
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert {type(outcome) for outcome in outcomes} == {UnavailableError}


async def test_another_device_takes_over_from_one_that_dies(fake: Fakes) -> None:
    well, dying = fake(device="cuda:0", seconds=0.01), fake(device="cuda:1", fails_on=EVERYTHING)
    async with running(well, dying, max_batch_size=2) as batcher:
        answers = await asyncio.gather(*(batcher.submit(Picture(red_picture(n))) for n in range(30)))
        assert dying.batches
        assert batcher.failure is None
        assert batcher.failures == ["cuda:1: RuntimeError"]
    assert [answer.detections.boxes[0, 0] for answer in answers] == list(range(30))


async def recovered(batcher: Batcher) -> None:
    async with asyncio.timeout(20):
        while batcher.failure is not None:
            await asyncio.sleep(0.01)


async def test_a_device_that_hangs_fails_its_callers_at_once_and_gets_a_new_thread_and_detector(
    fake: Fakes,
) -> None:
    stuck, fresh = fake(), fake()
    stuck.gate.clear()
    may_load, loaded = threading.Event(), []

    def reload(name: str) -> FakeDetector:
        loaded.append(name)
        assert may_load.wait(20)
        return fresh

    async with running(stuck, hang=0.3, max_batch_size=1, reload=reload) as batcher:
        tasks = [asyncio.create_task(batcher.submit(Picture(red_picture(n)))) for n in (1, 2)]
        await started(stuck)
        assert batcher.failure is None
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert [type(outcome) for outcome in outcomes] == [UnavailableError, UnavailableError]
        assert batcher.failure == "cpu has not answered for 0.3 s"
        may_load.set()
        await recovered(batcher)
        answer = await batcher.submit(Picture(red_picture(3)))
        assert answer.detections.boxes[0, 0] == 3
        assert batcher.detectors == [fresh]
        assert loaded == ["cpu"]
        assert batcher.busy  # the old thread, still
        stuck.gate.set()
        while batcher.busy:
            await asyncio.sleep(0.01)


async def test_a_device_whose_call_returns_after_all_keeps_its_detector(fake: Fakes) -> None:
    detector = fake()
    detector.gate.clear()
    async with running(detector, hang=0.2) as batcher:
        with pytest.raises(UnavailableError):
            await batcher.submit(Picture(red_picture(1)))
        detector.gate.set()
        await recovered(batcher)
        assert (await batcher.submit(Picture(red_picture(2)))).detections.boxes[0, 0] == 2


async def test_a_device_that_hangs_again_and_again_is_beyond_repair_until_a_call_returns(
    fake: Fakes,
) -> None:
    told: list[bool] = []
    detector = fake()
    detector.gate.clear()
    async with running(detector, hang=0.1, on_failure=told.append) as batcher:
        with pytest.raises(UnavailableError):
            await batcher.submit(Picture(red_picture(1)))
        while not told or not told[-1]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.5)
        assert getattr(detector, "launched", len(detector.batches)) == 3  # no more threads are spent on it
        detector.gate.set()
        await recovered(batcher)
        assert (await batcher.submit(Picture(red_picture(2)))).batch_size == 1


@pytest.mark.parametrize("way", ["raises", "hangs", "kills its thread"])
async def test_an_idle_device_that_fails_is_noticed_and_restarted(way: str, fake: Fakes) -> None:
    detector = fake()
    async with running(detector, canary=0.4) as batcher:
        await batcher.submit(Picture(red_picture(1)))
        if way == "hangs":
            detector.gate.clear()
        elif way == "raises":
            detector.fails_on = EVERYTHING
        else:
            detector.kills_on = EVERYTHING
        async with asyncio.timeout(10):
            while batcher.failure is None:
                await asyncio.sleep(0.01)
        detector.fails_on = detector.kills_on = frozenset()
        detector.gate.set()
        await recovered(batcher)
        assert (await batcher.submit(Picture(red_picture(2)))).detections.boxes[0, 0] == 2


async def test_a_device_that_is_used_gets_no_canary(fake: Fakes) -> None:
    detector = fake()
    async with running(detector, canary=60.0) as batcher:
        for n in range(3):
            await batcher.submit(Picture(red_picture(n)))
            await asyncio.sleep(0.05)
    assert len(detector.batches) == 3


async def test_a_picture_that_kills_the_thread_fails_alone(fake: Fakes) -> None:
    detector = fake(kills_on=frozenset({5}))
    async with running(detector) as batcher:
        tasks = await gathered(batcher, detector, range(1, 9))
        detector.gate.set()
        outcomes: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(outcomes[5], InferenceError)
        assert [outcomes[n].detections.boxes[0, 0] for n in (1, 2, 3, 4, 6, 7, 8)] == [1, 2, 3, 4, 6, 7, 8]
        assert batcher.failure is None


async def test_out_of_memory_splits_the_batch_and_lowers_the_cap_for_a_while(fake: Fakes) -> None:
    detector = fake(memory=3)
    async with running(detector) as batcher:
        tasks = await gathered(batcher, detector, range(8))
        detector.gate.set()
        answers = await asyncio.gather(*tasks)
        assert [answer.detections.boxes[0, 0] for answer in answers] == [200, *range(8)]
        assert [len(batch) for batch in detector.batches] == [1, 8, 4, 2, 2, 4, 2, 2]
        assert batcher.batch_caps == {"cpu": 2}
        detector.memory = 100
        for _ in range(130):
            await asyncio.gather(*(batcher.submit(Picture(red_picture(n))) for n in range(8)))
        assert batcher.batch_caps == {}
        assert max(map(len, detector.batches[-3:])) > 4


async def test_a_lone_picture_that_does_not_fit_may_be_sent_again(fake: Fakes) -> None:
    detector = fake(memory=0)
    async with running(detector) as batcher:
        with pytest.raises(UnavailableError, match="memory") as caught:
            await batcher.submit(Picture(red_picture(1)))
        assert caught.value.retry_after_s is not None
        detector.memory = 1
        assert (await batcher.submit(Picture(red_picture(2)))).batch_size == 1


async def test_high_goes_first(fake: Fakes) -> None:
    detector = fake()
    async with running(detector, max_batch_size=1) as batcher:
        tasks = await gathered(batcher, detector, range(1, 3))
        for n, priority in ((3, Priority.LOW), (4, Priority.HIGH), (5, Priority.NORMAL)):
            job = batcher.submit(Picture(red_picture(n)), priority=priority)
            tasks.append(asyncio.create_task(job))
            await asyncio.sleep(0.01)
        detector.gate.set()
        await asyncio.gather(*tasks)
    order = [batch[0][0] for batch in detector.batches]
    assert order == ([200, 1, 4, 2, 5, 3] if hasattr(detector, "launch") else [200, 4, 1, 2, 5, 3])


async def test_a_worker_that_ends_is_replaced(fake: Fakes) -> None:
    detector = fake()
    detector.gate.clear()
    async with running(detector) as batcher:
        waiting = asyncio.create_task(batcher.submit(Picture(red_picture(1))))
        await started(detector)
        next(task for task in asyncio.all_tasks() if task.get_name() == "worker-cpu").cancel()
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(waiting, 10)
        assert batcher.failure == "cpu: its worker ended"
        detector.gate.set()
        await recovered(batcher)
        assert (await batcher.submit(Picture(red_picture(2)))).detections.boxes[0, 0] == 2


async def test_a_deadline_frees_the_caller_and_the_picture_never_runs(fake: Fakes) -> None:
    detector = fake()
    detector.gate.clear()
    async with running(detector) as batcher:
        running_one = asyncio.create_task(batcher.submit(Picture(red_picture(1))))
        await started(detector)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await batcher.submit(Picture(red_picture(2)))
        detector.gate.set()
        await running_one
        await batcher.submit(Picture(red_picture(3)))
    assert [[red for red, _, _ in batch] for batch in detector.batches] == [[1], [3]]


async def test_a_caller_who_left_does_not_run(fake: Fakes) -> None:
    detector = fake()
    detector.gate.clear()
    async with running(detector) as batcher:
        stays = asyncio.create_task(batcher.submit(Picture(red_picture(1))))
        await started(detector)
        leaves = asyncio.create_task(batcher.submit(Picture(red_picture(2))))
        await asyncio.sleep(0.01)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        detector.gate.set()
        await stays
    assert [[red for red, _, _ in batch] for batch in detector.batches] == [[1]]


async def test_stopping_tells_those_who_wait(fake: Fakes) -> None:
    detector = fake()
    detector.gate.clear()
    async with running(detector) as batcher:
        tasks = [asyncio.create_task(batcher.submit(Picture(red_picture(1))))]
        await started(detector)
        tasks.append(asyncio.create_task(batcher.submit(Picture(red_picture(2)))))
        await asyncio.sleep(0.01)
        await batcher.stop()
        outcomes: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(UnavailableError):
            await batcher.submit(Picture(red_picture(3)))
    assert [type(outcome) for outcome in outcomes] == [UnavailableError, UnavailableError]


async def test_stopping_in_the_search_for_the_guilty_tells_everybody(fake: Fakes) -> None:
    detector = fake(fails_on=frozenset({1}))
    async with running(detector) as batcher:
        tasks = await gathered(batcher, detector, range(1, 9))
        detector.gate.set()
        await tasks[0]
        detector.seconds = 0.2
        while [(2, 32, 32)] not in detector.batches:
            await asyncio.sleep(0.01)
        await batcher.stop()
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert {type(outcome) for outcome in outcomes[2:]} == {UnavailableError}


async def test_pictures_are_sent_ahead_to_a_device_that_takes_them() -> None:
    class Uploading(FakeGPU):
        def upload(self, image: Tensor) -> Tensor:
            return image + 1

        def allocate(self, shape: tuple[int, int, int]) -> Pixels:
            return np.full(shape, 9, np.uint8)

    detector = Uploading()
    async with running(detector) as batcher:
        sent = batcher.upload_early(Picture(red_picture(4)))
        await batcher.submit(sent)
        assert batcher.allocate((1, 2, 3)).flat[0] == 9
    assert detector.batches[0][0][0] == 5
    assert sent.pixels[0, 0, 0] == 4  # the host's, to draw on
    async with running(Uploading(), Uploading(device="cuda:1")) as batcher:  # whose picture it will be is not known
        assert batcher.upload_early(Picture(red_picture(4))).on_device is None
        assert batcher.allocate((1, 2, 3)).flat[0] == 9


@pytest.mark.parametrize("fake", ["one in flight"], indirect=True)
async def test_a_device_that_works_in_one_call_gets_pictures_from_pageable_memory(fake: Fakes) -> None:
    async with running(fake()) as batcher:
        assert batcher.upload_early(Picture(red_picture(4))).on_device is None
        assert batcher.allocate((1, 2, 3)).shape == (1, 2, 3)


@pytest.mark.parametrize("how", ["answered", "failed", "left"])
async def test_no_picture_is_kept_when_its_caller_has_an_answer(
    how: str, fake: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_logger, "disabled", True)  # pytest keeps what is logged, tracebacks and all
    detector = fake(fails_on=frozenset({5}) if how == "failed" else frozenset())

    async def attempt(batcher: Batcher) -> weakref.ref[Any]:
        pixels = red_picture(5)
        submitting = asyncio.create_task(batcher.submit(Picture(pixels)))
        await started(detector)
        if how == "left":
            submitting.cancel()
        else:
            detector.gate.set()
        await asyncio.wait([submitting])
        detector.gate.set()
        if how == "left":
            assert submitting.cancelled()
        else:
            assert (submitting.exception() is None) is (how == "answered")
            release_frames(submitting.exception())  # as it becomes an answer
        return weakref.ref(pixels)

    async with running(detector) as batcher:
        detector.gate.clear()
        gc.disable()
        try:
            seen = await attempt(batcher)
            async with asyncio.timeout(20):
                while batcher.busy:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert seen() is None
        finally:
            gc.enable()
