from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager

import numpy as np
import pytest

from service.batching.admission import Admission
from service.batching.batch_queue import Priority
from service.batching.budgets import Budget, Permit, release_with
from service.errors import DeadlineError, QueueFullError, TooLateError
from service.telemetry.metrics import Metrics

NORMAL, LOW, HIGH = Priority.NORMAL, Priority.LOW, Priority.HIGH


def admission_of(capacity: int = 100, devices: int = 1, metrics: Metrics | None = None) -> Admission:
    return Admission(
        capacity=capacity,
        pixel_capacity=1000,
        byte_capacity=1000,
        memory_capacity=4000,
        devices=lambda: devices,
        metrics=metrics or Metrics(),
    )


@contextmanager
def images(
    admission: Admission, count: int = 1, priority: Priority = NORMAL, seconds_left: float = 1e9
) -> Iterator[None]:
    permit = admission.images.permit(priority)
    admission.reserve_images(permit, count, seconds_left=seconds_left)
    yield
    permit.release()


def held(budget: Budget, units: int, priority: Priority = NORMAL) -> Permit:
    permit = budget.permit(priority)
    assert permit.reserve(units)
    return permit


def test_a_budget_runs_out_but_never_for_a_permit_that_is_alone() -> None:
    budget = Budget(1000)
    alone = held(budget, 5000)
    assert alone.reserve(1)
    another = budget.permit(NORMAL)
    assert not another.reserve(1)
    alone.release()
    assert another.reserve(600)
    held(budget, 400)
    assert not another.reserve(1)
    assert budget.used == 1000


def test_a_permit_is_released_once_and_holds_nothing_more() -> None:
    budget = Budget(10)
    permit, other = held(budget, 4), held(budget, 5, LOW)
    permit.release()
    permit.release()
    assert budget.used_by == {HIGH: 0, NORMAL: 0, LOW: 5}
    with pytest.raises(CancelledError):
        permit.reserve(1)  # in a decoding thread that comes to it late
    other.release()
    assert budget.used == 0


@pytest.mark.anyio
async def test_a_patient_permit_waits_until_others_are_released() -> None:
    budget = Budget(1000)
    finish, most, inside = asyncio.Event(), 0, 0

    async def hold(units: int) -> None:
        nonlocal most, inside
        permit = budget.permit(NORMAL)
        try:
            while not permit.reserve(units):
                with budget.release() as released:
                    if not permit.fits(units):
                        await released
            inside += units
            most = max(most, inside)
            await finish.wait()
            await asyncio.sleep(0)
            inside -= units
        finally:
            permit.release()

    holders = [asyncio.create_task(hold(units)) for units in (400, 400, 400, 3000, 400)]
    await asyncio.sleep(0.01)
    assert inside == 800
    holders[2].cancel()  # one that waits leaves no trace
    finish.set()
    await asyncio.gather(*holders, return_exceptions=True)
    assert [holder.cancelled() for holder in holders] == [False, False, True, False, False]
    assert most == 3000
    assert budget.used == 0


def test_images_are_reserved_all_or_none() -> None:
    admission = admission_of(capacity=4)
    with images(admission, 3):
        assert admission.images.used == 3
        with pytest.raises(QueueFullError) as caught, images(admission, 2):
            pass
        assert caught.value.retry_after_s == 1  # nothing measured yet
        with images(admission, 1):
            assert admission.images.used == 4
    assert admission.images.used == 0


def test_low_priority_leaves_a_quarter_of_the_images_to_the_others() -> None:
    admission = admission_of(capacity=8)
    with images(admission, 6, LOW):
        with pytest.raises(QueueFullError), images(admission, 1, LOW):
            pass
        with images(admission, 2):
            pass
    with images(admission_of(capacity=1), 1, LOW):
        pass


def test_each_rejection_is_counted_by_its_reason() -> None:
    metrics = Metrics()
    admission = admission_of(capacity=1, metrics=metrics)
    held(admission.bytes, 1000)
    with pytest.raises(QueueFullError):
        admission.reserve_bytes(admission.bytes.permit(NORMAL), 1)
    assert isinstance(admission.pixels_full(), QueueFullError)
    with images(admission), pytest.raises(QueueFullError):
        admission.check()
    for reason in ("bytes-full", "pixels-full", "queue-full"):
        assert metrics.registry.get_sample_value("frcnn_images_rejected_total", {"reason": reason}) == 1


@pytest.mark.parametrize(("devices", "seconds"), [(1, 10), (2, 5)])
def test_retry_after_follows_the_measured_rate(devices: int, seconds: int) -> None:
    admission = admission_of(capacity=20, devices=devices)
    admission.record_batch(4, 2.0)  # 2 images a second on each device
    with images(admission, 20), pytest.raises(QueueFullError) as caught:
        admission.check(20)
    assert caught.value.retry_after_s == seconds


def test_a_deadline_that_the_rate_cannot_meet_is_rejected_at_once() -> None:
    admission = admission_of()
    admission.record_batch(10, 1.0)
    with images(admission, 39):  # with one more, 4 s of work
        with pytest.raises(TooLateError) as caught:
            admission.check(seconds_left=4.9)
        assert caught.value.retry_after_s == 1
        with pytest.raises(TooLateError) as caught:
            admission.check(11, seconds_left=1.25)
        assert caught.value.retry_after_s == 4  # when enough has been answered for it to be met
        admission.check(seconds_left=5.1)


def test_a_deadline_that_has_passed_is_no_rejection() -> None:
    with pytest.raises(DeadlineError):
        admission_of().check(seconds_left=-0.01)


def test_lower_priorities_are_not_ahead() -> None:
    admission = admission_of()
    admission.record_batch(10, 1.0)
    with images(admission, 50, LOW), images(admission, 5, HIGH):
        admission.check(priority=NORMAL, seconds_left=1.0)
        with pytest.raises(TooLateError):
            admission.check(priority=LOW, seconds_left=1.0)


def test_with_nothing_ahead_one_slow_answer_rejects_nothing() -> None:
    admission = admission_of()
    admission.record_batch(1, 100.0)
    admission.check(64, seconds_left=0.1)


def test_more_images_of_a_request_wait_for_others_alone() -> None:
    admission = admission_of()
    admission.record_batch(1, 1.0)
    own = admission.images.permit(LOW)
    admission.reserve_images(own, 1, seconds_left=0.1)
    admission.reserve_images(own, 9, seconds_left=0.1)  # behind nobody, as slow as they may be
    assert own.units == 10
    with images(admission, 1, NORMAL):
        admission.reserve_images(own, 9, seconds_left=26)  # 20 s, at most 80 % of what is left
        with pytest.raises(TooLateError):
            admission.reserve_images(own, 9, seconds_left=26)
        with pytest.raises(QueueFullError):
            admission.reserve_images(own, 56, seconds_left=1e9)


def test_the_rate_follows_what_is_measured() -> None:
    admission = admission_of(capacity=1)
    admission.record_batch(1, 10.0)
    for _ in range(50):
        admission.record_batch(10, 1.0)
    with images(admission), pytest.raises(QueueFullError) as caught:
        admission.check()
    assert caught.value.retry_after_s == 1


def test_a_caller_leaves_a_quarter_of_what_it_holds_to_others() -> None:
    budget = Budget(1000)
    greedy, again = budget.permit(NORMAL, "greedy"), budget.permit(NORMAL, "greedy")
    assert greedy.reserve(700)
    assert again.reserve(100)
    assert not again.reserve(1)
    other = budget.permit(NORMAL, "other")
    assert other.reserve(160)
    assert not other.reserve(1)
    third = budget.permit(NORMAL, "third")
    assert third.reserve(32)
    greedy.shrink(100)
    assert greedy.units == 100
    assert other.reserve(300)


def test_a_greedy_caller_is_rejected_while_another_is_let_in() -> None:
    admission = admission_of(capacity=10)
    held = [admission.images.permit(NORMAL, "greedy") for _ in range(8)]
    for permit in held:
        admission.reserve_images(permit, 1, seconds_left=1e9)
    with pytest.raises(QueueFullError, match="leave some to others"):
        admission.check(caller="greedy")
    admission.check(caller="other")


def test_of_other_callers_as_many_are_ahead_as_one_has_oneself() -> None:
    admission = admission_of()
    admission.record_batch(10, 1.0)
    assert admission.images.permit(NORMAL, "greedy").reserve(70)
    with pytest.raises(TooLateError):
        admission.check(caller="greedy", seconds_left=1.0)
    admission.check(caller="other", seconds_left=1.0)


@pytest.mark.anyio
async def test_a_permit_is_released_when_a_thing_is_freed() -> None:
    budget = Budget(1000)
    permit, thing = held(budget, 300), np.empty(100, np.uint8)
    release_with(thing, permit.split(100), asyncio.get_running_loop())
    permit.release()
    assert budget.used == 100
    view = thing[3:]
    del thing
    await asyncio.sleep(0)
    assert budget.used == 100
    del view
    await asyncio.sleep(0)
    assert budget.used == 0
    with pytest.raises(CancelledError):
        permit.split(1)
