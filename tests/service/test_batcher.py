from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.batcher import Batcher
from service.errors import DeadlineError, InferenceError, QueueFullError, UnavailableError
from service.images import Picture
from service.metrics import Metrics

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def running(
    *detectors: Any,
    max_batch_size: int = 8,
    capacity: int = 100,
    delay: float = 0.0,
    hang: float = 60.0,
    pixels: int = 10**9,
) -> AsyncIterator[Batcher]:
    batcher = Batcher(
        detectors,
        max_batch_size=max_batch_size,
        max_queue_delay_s=delay,
        capacity=capacity,
        pixel_capacity=pixels,
        hang_timeout_s=hang,
        metrics=Metrics(),
    )
    batcher.start()
    try:
        yield batcher
    finally:
        for detector in detectors:
            detector.gate.set()
        await batcher.stop()


def soon(seconds: float = 20.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def started(detector: Any) -> None:
    assert await asyncio.to_thread(detector.started.wait, 20)


async def test_64_callers_of_two_shapes_share_batches_and_get_their_own_answers(fake: Any, make_picture: Any) -> None:
    detector = fake(seconds=0.05)
    shapes = [(64, 32), (32, 64)]
    async with running(detector) as batcher:
        answers = await asyncio.gather(
            *(batcher.submit(Picture(make_picture(n, shapes[n % 2])), deadline=soon()) for n in range(64))
        )

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


async def test_an_idle_device_starts_a_lone_picture_at_once(fake: Any, make_picture: Any) -> None:
    detector = fake()
    detector.gate.clear()
    async with running(detector) as batcher:
        lone = asyncio.create_task(batcher.submit(Picture(make_picture(1)), deadline=soon()))
        await started(detector)  # it runs although nobody else has come, and nobody ever will
        assert detector.batches == [[(1, 32, 32)]]
        detector.gate.set()
        assert (await lone).batch_size == 1


async def test_while_a_device_works_requests_gather(fake: Any, make_picture: Any) -> None:
    detector = fake()
    detector.gate.clear()
    async with running(detector, max_batch_size=3) as batcher:
        tasks = [asyncio.create_task(batcher.submit(Picture(make_picture(0)), deadline=soon()))]
        await started(detector)
        tasks += [asyncio.create_task(batcher.submit(Picture(make_picture(n)), deadline=soon())) for n in range(1, 6)]
        await asyncio.sleep(0.05)
        detector.gate.set()
        await asyncio.gather(*tasks)
    assert [[red for red, _, _ in batch] for batch in detector.batches] == [[0], [1, 2, 3], [4, 5]]


async def test_a_delay_waits_for_company(fake: Any, make_picture: Any) -> None:
    detector = fake()
    async with running(detector, max_batch_size=2, delay=5.0) as batcher:
        first = asyncio.create_task(batcher.submit(Picture(make_picture(1)), deadline=soon()))
        await asyncio.sleep(0.05)
        assert not detector.batches
        await batcher.submit(Picture(make_picture(2)), deadline=soon())
        await first
    assert [len(batch) for batch in detector.batches] == [2]


async def test_several_devices_feed_from_one_queue(fake: Any, make_picture: Any) -> None:
    detectors = [fake(seconds=0.02, device=f"cuda:{n}") for n in range(2)]
    async with running(*detectors, max_batch_size=2) as batcher:
        answers = await asyncio.gather(*(batcher.submit(Picture(make_picture(n)), deadline=soon()) for n in range(20)))
    assert [answer.detections.boxes[0, 0] for answer in answers] == list(range(20))
    assert all(detector.batches for detector in detectors)
    assert sum(len(batch) for detector in detectors for batch in detector.batches) == 20


EVERYTHING = frozenset(range(256))


async def gathered(batcher: Batcher, detector: Any, make_picture: Any, reds: range) -> list[asyncio.Task[Any]]:
    """Callers whose pictures wait together behind one that runs and is held."""
    detector.gate.clear()
    tasks = [asyncio.create_task(batcher.submit(Picture(make_picture(200)), deadline=soon()))]
    await started(detector)
    tasks += [asyncio.create_task(batcher.submit(Picture(make_picture(n)), deadline=soon())) for n in reds]
    await asyncio.sleep(0.05)
    return tasks


async def test_only_the_guilty_picture_of_a_batch_fails(fake: Any, make_picture: Any) -> None:
    detector = fake(fails_on=frozenset({5}))
    async with running(detector) as batcher:
        tasks = await gathered(batcher, detector, make_picture, range(1, 9))
        detector.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(outcomes[5], InferenceError)
        for n in (1, 2, 3, 4, 6, 7, 8):
            assert outcomes[n].detections.boxes[0, 0] == n
        assert batcher.failure is None


async def test_one_bad_picture_alone_does_not_make_the_device_look_ill(fake: Any, make_picture: Any) -> None:
    async with running(fake(fails_on=frozenset({5}))) as batcher:
        with pytest.raises(InferenceError):
            await batcher.submit(Picture(make_picture(5)), deadline=soon())
        assert batcher.failure is None
        assert (await batcher.submit(Picture(make_picture(6)), deadline=soon())).detections.boxes[0, 0] == 6


async def test_the_search_for_the_guilty_skips_those_who_left(fake: Any, make_picture: Any) -> None:
    detector = fake(fails_on=frozenset({1}))
    async with running(detector) as batcher:
        tasks = await gathered(batcher, detector, make_picture, range(1, 5))
        detector.started.clear()
        detector.gate.set()
        await tasks[0]
        for task in tasks[2:]:
            task.cancel()  # while their batch runs, or after
        await asyncio.gather(*tasks, return_exceptions=True)
    assert all(len(batch) > 1 or batch[0][0] in {200, 1, 127} for batch in detector.batches)


async def test_a_device_that_fails_on_everything_is_failing_until_it_recovers(fake: Any, make_picture: Any) -> None:
    detector = fake(fails_on=EVERYTHING)
    async with running(detector) as batcher:
        with pytest.raises(UnavailableError):
            await batcher.submit(Picture(make_picture(1)), deadline=soon())
        assert batcher.failure == "cpu: RuntimeError"
        detector.fails_on = frozenset()
        answer = await batcher.submit(Picture(make_picture(2)), deadline=soon())
        assert answer.detections.boxes[0, 0] == 2
        assert batcher.failure is None


async def test_when_the_last_device_fails_all_who_wait_are_told_at_once(fake: Any, make_picture: Any) -> None:
    detector = fake(fails_on=EVERYTHING)
    async with running(detector, max_batch_size=2) as batcher:
        tasks = await gathered(batcher, detector, make_picture, range(1, 8))
        detector.gate.set()
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert {type(outcome) for outcome in outcomes} == {UnavailableError}


async def test_another_device_takes_over_from_one_that_dies(fake: Any, make_picture: Any) -> None:
    well, dying = fake(device="cuda:0", seconds=0.01), fake(device="cuda:1", fails_on=EVERYTHING)
    async with running(well, dying, max_batch_size=2) as batcher:
        answers = await asyncio.gather(*(batcher.submit(Picture(make_picture(n)), deadline=soon()) for n in range(30)))
        assert dying.batches
        assert batcher.failure is None
        assert batcher.failures == ["cuda:1: RuntimeError"]
    assert [answer.detections.boxes[0, 0] for answer in answers] == list(range(30))


async def test_a_device_that_hangs_is_failing(fake: Any, make_picture: Any) -> None:
    detector = fake()
    detector.gate.clear()
    async with running(detector, hang=0.2) as batcher:
        stuck = asyncio.create_task(batcher.submit(Picture(make_picture(1)), deadline=soon()))
        await started(detector)
        assert batcher.failure is None
        await asyncio.sleep(0.3)
        assert batcher.failure == "cpu has not answered for 0.2 s"
        detector.gate.set()
        await stuck
        assert batcher.failure is None


async def test_a_deadline_frees_the_caller_and_the_picture_never_runs(fake: Any, make_picture: Any) -> None:
    detector = fake()
    detector.gate.clear()
    async with running(detector) as batcher:
        running_one = asyncio.create_task(batcher.submit(Picture(make_picture(1)), deadline=soon()))
        await started(detector)
        with pytest.raises(DeadlineError):
            await batcher.submit(Picture(make_picture(2)), deadline=soon(0.05))
        detector.gate.set()
        await running_one
        await batcher.submit(Picture(make_picture(3)), deadline=soon())
    assert [[red for red, _, _ in batch] for batch in detector.batches] == [[1], [3]]


async def test_a_caller_who_left_does_not_run(fake: Any, make_picture: Any) -> None:
    detector = fake()
    detector.gate.clear()
    async with running(detector) as batcher:
        stays = asyncio.create_task(batcher.submit(Picture(make_picture(1)), deadline=soon()))
        await started(detector)
        leaves = asyncio.create_task(batcher.submit(Picture(make_picture(2)), deadline=soon()))
        await asyncio.sleep(0.01)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        detector.gate.set()
        await stays
    assert [[red for red, _, _ in batch] for batch in detector.batches] == [[1]]


async def test_places_are_all_or_none_and_come_back(fake: Any, make_picture: Any) -> None:
    async with running(fake(), capacity=4) as batcher:
        with batcher.places(3):
            assert batcher.in_flight == 3
            with pytest.raises(QueueFullError) as caught, batcher.places(2):
                pass
            assert caught.value.retry_after_s == 1  # nothing measured yet
            with batcher.places(1):
                assert batcher.in_flight == 4
        assert batcher.in_flight == 0


async def test_room_in_pixels_runs_out_but_never_for_a_lone_picture(fake: Any) -> None:
    async with running(fake(), pixels=1000) as batcher:
        with batcher.room_for(5000), pytest.raises(QueueFullError), batcher.room_for(1):
            pass
        with batcher.room_for(600), batcher.room_for(400), pytest.raises(QueueFullError), batcher.room_for(1):
            pass
        with batcher.room_for(1000):
            pass


async def test_retry_after_follows_the_measured_rate(fake: Any, make_picture: Any) -> None:
    async with running(fake(seconds=0.5), capacity=20, max_batch_size=1) as batcher:
        await batcher.submit(Picture(make_picture(1)), deadline=soon())  # under 2 images a second
        with batcher.places(20), pytest.raises(QueueFullError) as caught, batcher.places(20):
            pass
    assert caught.value.retry_after_s is not None
    assert 10 < caught.value.retry_after_s <= 60  # 20 images too many, at that rate


async def test_stopping_tells_those_who_wait(fake: Any, make_picture: Any) -> None:
    detector = fake()
    detector.gate.clear()
    async with running(detector) as batcher:
        tasks = [asyncio.create_task(batcher.submit(Picture(make_picture(1)), deadline=soon()))]
        await started(detector)
        tasks.append(asyncio.create_task(batcher.submit(Picture(make_picture(2)), deadline=soon())))
        await asyncio.sleep(0.01)
        await batcher.stop()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(UnavailableError):
            await batcher.submit(Picture(make_picture(3)), deadline=soon())
    assert [type(outcome) for outcome in outcomes] == [UnavailableError, UnavailableError]


async def test_stopping_in_the_search_for_the_guilty_tells_everybody(fake: Any, make_picture: Any) -> None:
    detector = fake(fails_on=frozenset({1}))
    async with running(detector) as batcher:
        tasks = await gathered(batcher, detector, make_picture, range(1, 9))
        detector.gate.set()
        await tasks[0]
        detector.seconds = 0.2
        while [(2, 32, 32)] not in detector.batches:
            await asyncio.sleep(0.01)
        await batcher.stop()
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert {type(outcome) for outcome in outcomes[2:]} == {UnavailableError}
