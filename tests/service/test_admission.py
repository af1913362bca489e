from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager

import pytest

from service.admission import Admission
from service.batch_queue import Priority
from service.errors import DeadlineError, QueueFullError, TooLateError
from service.metrics import Metrics


def door(capacity: int = 100, pixels: int = 10**9, devices: int = 1, metrics: Metrics | None = None) -> Admission:
    return Admission(
        capacity=capacity,
        pixel_capacity=pixels,
        byte_capacity=1000,
        devices=lambda: devices,
        metrics=metrics or Metrics(),
    )


@contextmanager
def refused(error: type[Exception]) -> Iterator[pytest.ExceptionInfo[QueueFullError]]:
    with pytest.raises(error) as caught:
        yield caught  # type: ignore[misc]


def test_places_are_all_or_none_and_come_back() -> None:
    admission = door(capacity=4)
    with admission.places(3):
        assert admission.in_flight == 3
        with refused(QueueFullError) as caught, admission.places(2):
            pass
        assert caught.value.retry_after_s == 1  # nothing measured yet
        with admission.places(1):
            assert admission.in_flight == 4
    assert admission.in_flight == 0


def test_low_ones_leave_a_quarter_of_the_places_to_the_others() -> None:
    admission = door(capacity=8)
    with admission.places(6, priority=Priority.LOW):
        with refused(QueueFullError), admission.places(priority=Priority.LOW):
            pass
        with admission.places(2, priority=Priority.NORMAL):
            pass
    with door(capacity=1).places(priority=Priority.LOW):
        pass


def test_room_in_pixels_runs_out_but_never_for_a_lone_picture() -> None:
    admission = door(pixels=1000)
    with admission.room() as room, admission.room() as another:
        room.take(5000)
        with refused(QueueFullError):
            another.take(1)
    with admission.room() as room, admission.room() as another, admission.room() as third:
        room.take(600)
        another.take(400)
        with refused(QueueFullError):
            third.take(1)
    with admission.room() as room:
        room.take(1000)


@pytest.mark.anyio
async def test_patient_ones_wait_for_room() -> None:
    admission = door(pixels=1000)
    let_go, most, inside = asyncio.Event(), 0, 0

    async def look(pixels: int) -> None:
        nonlocal most, inside
        with admission.room() as room:
            await room.wait_for(pixels)
            inside += pixels
            most = max(most, inside)
            await let_go.wait()
            await asyncio.sleep(0)
            inside -= pixels

    looks = [asyncio.create_task(look(pixels)) for pixels in (400, 400, 400, 3000, 400)]
    await asyncio.sleep(0.01)
    assert inside == 800
    looks[2].cancel()  # one that waits leaves no trace
    let_go.set()
    await asyncio.gather(*looks, return_exceptions=True)
    assert [look.cancelled() for look in looks] == [False, False, True, False, False]
    assert most == 3000
    with admission.room() as room:
        room.take(1000)


def test_whoever_has_left_is_not_refused() -> None:
    metrics = Metrics()
    admission = door(pixels=1000, metrics=metrics)
    with admission.room() as room:
        pass
    with pytest.raises(CancelledError):
        room.take(1)  # in a decoding thread that comes to it late
    with admission.room() as room, admission.room() as another:
        room.take(1000)
        with refused(QueueFullError):
            another.take(1)
    counted = metrics.registry.get_sample_value("frcnn_images_rejected_total", {"reason": "pixels-full"})
    assert counted == 1


def test_room_for_bodies_runs_out_but_never_for_a_lone_one() -> None:
    admission = door()
    with admission.room_for_body() as take:
        take(600)
        take(600)
        with admission.room_for_body() as take_for_another, refused(QueueFullError):
            take_for_another(1)
    with admission.room_for_body() as take, admission.room_for_body() as take_for_another:
        take(600)
        take_for_another(400)
        with refused(QueueFullError):
            take(1)
    with admission.room_for_body() as take:
        take(1000)


@pytest.mark.parametrize(("devices", "seconds"), [(1, 10), (2, 5)])
def test_retry_after_follows_the_measured_rate(devices: int, seconds: int) -> None:
    admission = door(capacity=20, devices=devices)
    admission.measure(4, 2.0)  # 2 images a second on each device
    with admission.places(20), refused(QueueFullError) as caught, admission.places(20):
        pass
    assert caught.value.retry_after_s == seconds


def test_a_deadline_that_the_rate_cannot_meet_is_refused_at_once() -> None:
    admission = door()
    admission.measure(10, 1.0)
    with admission.places(39):  # with one more, 4 s of work
        with refused(TooLateError) as caught, admission.places(seconds_left=4.9):
            pass
        assert caught.value.retry_after_s == 1
        with refused(TooLateError) as caught, admission.places(11, seconds_left=1.25):
            pass
        assert caught.value.retry_after_s == 4  # when enough has been answered for it to be met
        with admission.places(seconds_left=5.1):
            pass
    assert admission.in_flight == 0


def test_whose_time_is_over_is_told_so() -> None:
    with pytest.raises(DeadlineError), door().places(seconds_left=-0.01):
        pass


def test_those_of_lower_priority_are_not_ahead() -> None:
    admission = door()
    admission.measure(10, 1.0)
    with admission.places(50, priority=Priority.LOW), admission.places(5, priority=Priority.HIGH):
        with admission.places(priority=Priority.NORMAL, seconds_left=1.0):
            pass
        with refused(TooLateError), admission.places(priority=Priority.LOW, seconds_left=1.0):
            pass


def test_with_nothing_ahead_one_slow_answer_does_not_shut_the_door() -> None:
    admission = door()
    admission.measure(1, 100.0)
    with admission.places(64, seconds_left=0.1):
        pass


def test_the_rate_follows_what_is_measured() -> None:
    admission = door(capacity=1)
    admission.measure(1, 10.0)
    for _ in range(50):
        admission.measure(10, 1.0)
    with ExitStack() as held:
        held.enter_context(admission.places())
        with refused(QueueFullError) as caught, admission.places():
            pass
    assert caught.value.retry_after_s == 1
