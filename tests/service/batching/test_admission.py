from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from service.batching.admission import Admission
from service.batching.batch_queue import Priority
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
    assert admission.bytes.permit(NORMAL).reserve(1000)
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
