from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.batching.batch_queue import BatchQueue, Priority

WIDE, TALL = (800, 1088), (1088, 800)


@dataclass(frozen=True)
class Job:
    name: str
    shape: tuple[int, int]
    arrived: float
    priority: Priority = Priority.NORMAL
    caller: str = ""


def names(batch: list[Job]) -> list[str]:
    return [job.name for job in batch]


def test_a_batch_is_of_one_shape_and_the_oldest_head_goes_first() -> None:
    queue: BatchQueue[Job] = BatchQueue(max_batch_size=2)
    for job in (Job("a", WIDE, 0), Job("b", TALL, 1), Job("c", WIDE, 2), Job("d", WIDE, 3)):
        queue.put(job)

    assert names(queue.take(now=10)) == ["a", "c"]
    assert names(queue.take(now=10)) == ["b"]
    assert names(queue.take(now=10)) == ["d"]
    assert queue.take(now=10) == []
    assert len(queue) == 0


def test_a_job_that_left_does_not_run() -> None:
    queue: BatchQueue[Job] = BatchQueue(max_batch_size=4)
    first, second = Job("a", WIDE, 0), Job("b", WIDE, 1)
    queue.put(first)
    queue.put(second)

    queue.discard(first)
    queue.discard(first)
    assert names(queue.take(now=1)) == ["b"]
    queue.discard(second)
    assert len(queue) == 0


def test_a_job_that_is_put_back_goes_before_the_others() -> None:
    queue: BatchQueue[Job] = BatchQueue(max_batch_size=2)
    jobs = [Job(name, WIDE, n) for n, name in enumerate("abcd")]
    for job in jobs:
        queue.put(job)
    for job in reversed(queue.take(now=9)):
        queue.put_back(job)
    assert names(queue.take(now=9)) == ["a", "b"]
    assert names(queue.take(now=9)) == ["c", "d"]
    queue.put_back(jobs[2])
    assert names(queue.take(now=9)) == ["c"]


def test_without_delay_a_lone_job_is_ready_at_once() -> None:
    queue: BatchQueue[Job] = BatchQueue(max_batch_size=8)
    queue.put(Job("a", WIDE, 5))
    assert queue.next_ready() == 5
    assert names(queue.take(now=5)) == ["a"]


def test_delay_holds_an_unfilled_batch_back_and_a_full_one_not() -> None:
    queue: BatchQueue[Job] = BatchQueue(max_batch_size=2, max_delay=0.5)
    queue.put(Job("a", WIDE, 1.0))
    assert queue.take(now=1.4) == []
    assert queue.next_ready() == 1.5
    queue.put(Job("b", TALL, 1.1))
    queue.put(Job("c", TALL, 1.2))

    assert names(queue.take(now=1.2)) == ["b", "c"]  # full, though a is older
    assert names(queue.take(now=1.5)) == ["a"]
    assert queue.next_ready() is None


def test_a_batch_size_below_one_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        BatchQueue(max_batch_size=0)


@given(
    shapes=st.lists(st.sampled_from([WIDE, TALL, (64, 64)]), max_size=60),
    max_batch_size=st.integers(1, 9),
    leaving=st.sets(st.integers(0, 59)),
)
def test_every_job_comes_out_once_in_order_and_never_with_another_shape(
    shapes: list[tuple[int, int]], max_batch_size: int, leaving: set[int]
) -> None:
    queue: BatchQueue[Job] = BatchQueue(max_batch_size=max_batch_size)
    jobs = [Job(str(n), shape, float(n)) for n, shape in enumerate(shapes)]
    for job in jobs:
        queue.put(job)
    for n in leaving & set(range(len(jobs))):
        queue.discard(jobs[n])
    waiting = [job for n, job in enumerate(jobs) if n not in leaving]

    taken: list[Job] = []
    while batch := queue.take(now=1e9):
        assert len(batch) <= max_batch_size
        assert len({job.shape for job in batch}) == 1
        assert batch[0] == min((job for job in waiting if job not in taken), key=lambda job: job.arrived)
        taken += batch

    assert sorted(taken, key=lambda job: job.arrived) == waiting
    for shape in set(shapes):
        line = [job for job in taken if job.shape == shape]
        assert line == sorted(line, key=lambda job: job.arrived)


def test_high_goes_before_normal_before_low() -> None:
    queue: BatchQueue[Job] = BatchQueue(max_batch_size=1, head_start=10)
    for n, priority in enumerate((Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.LOW, Priority.HIGH)):
        queue.put(Job(str(n), (WIDE, TALL)[n % 2], n, priority))
    order = []
    while batch := queue.take(now=100):
        order += names(batch)
    assert order == ["2", "4", "1", "0", "3"]


def test_whoever_has_waited_a_head_start_longer_goes_first() -> None:
    queue: BatchQueue[Job] = BatchQueue(max_batch_size=1, head_start=10)
    for job in (Job("low", WIDE, 0, Priority.LOW), Job("soon", WIDE, 19.9, Priority.HIGH)):
        queue.put(job)
    queue.put(Job("late", WIDE, 20.1, Priority.HIGH))
    assert [names(queue.take(now=30)) for _ in range(3)] == [["soon"], ["low"], ["late"]]


def test_a_low_one_rides_along_in_a_batch_that_is_not_full() -> None:
    queue: BatchQueue[Job] = BatchQueue(max_batch_size=3)
    for job in (Job("low", WIDE, 0, Priority.LOW), Job("other", TALL, 1), Job("high", WIDE, 2, Priority.HIGH)):
        queue.put(job)
    assert names(queue.take(now=9)) == ["high", "low"]
    assert names(queue.take(now=9)) == ["other"]


def test_a_batch_can_be_bounded_and_a_full_one_is_not_held_back() -> None:
    queue: BatchQueue[Job] = BatchQueue(max_batch_size=4, max_delay=5)
    for n in range(3):
        queue.put(Job(str(n), WIDE, n))
    assert queue.next_ready() == 5
    assert queue.take(now=3) == []
    assert queue.next_ready(at_most=2) == 0
    assert names(queue.take(now=3, at_most=2)) == ["0", "1"]
    assert queue.take(now=3, at_most=2) == []


@given(
    jobs=st.lists(
        st.tuples(st.sampled_from([WIDE, TALL]), st.floats(0, 60), st.sampled_from(Priority)), min_size=1, max_size=60
    ),
    max_batch_size=st.integers(1, 5),
    batches_per_s=st.floats(0.05, 5),
)
@example(
    jobs=[
        (WIDE, 0.0, Priority.HIGH),
        (WIDE, 0.0, Priority.LOW),
        (TALL, 3e-259, Priority.NORMAL),
        (WIDE, 3e-157, Priority.NORMAL),
    ],
    max_batch_size=1,
    batches_per_s=1.0,
)
def test_nobody_is_overtaken_by_what_comes_two_head_starts_later(
    jobs: list[tuple[tuple[int, int], float, Priority]], max_batch_size: int, batches_per_s: float
) -> None:
    queue: BatchQueue[Job] = BatchQueue(max_batch_size=max_batch_size, head_start=5)
    arriving = sorted((Job(str(n), *job) for n, job in enumerate(jobs)), key=lambda job: job.arrived)
    waiting: list[Job] = []
    now, unseen = 0.0, list(arriving)
    while unseen or waiting:
        while unseen and unseen[0].arrived <= now:
            waiting.append(unseen.pop(0))
            queue.put(waiting[-1])
        batch = queue.take(now)
        # Who rides along takes nobody's turn: what counts is who a batch is made for.
        for passed in (job for job in waiting if job not in batch and batch):
            assert batch[0].arrived <= passed.arrived + 2 * queue.head_start
            if passed.priority <= batch[0].priority:
                assert batch[0].arrived <= passed.arrived
        for job in batch:
            waiting.remove(job)
            line = [other for other in waiting if other.shape == job.shape and other.priority == job.priority]
            assert all(job.arrived <= other.arrived for other in line)
        now += 1 / batches_per_s
    assert len(queue) == 0


def test_a_line_that_fills_no_batch_is_held_back_until_it_is_told_to_be() -> None:
    queue: BatchQueue[Job] = BatchQueue(max_batch_size=2)
    queue.put(Job("a", WIDE, 0))
    assert queue.take(0.0, hold_until=5.0) == []
    assert queue.next_ready(hold_until=5.0) == 5.0
    queue.put(Job("b", WIDE, 0))
    queue.put(Job("c", WIDE, 0))
    assert names(queue.take(0.0, hold_until=5.0)) == ["a", "b"]
    assert queue.take(4.9, hold_until=5.0) == []
    assert names(queue.take(5.0, hold_until=5.0)) == ["c"]
    assert queue.next_ready(hold_until=5.0) is None


def test_a_lone_caller_waits_for_one_job_of_each_other_one() -> None:
    queue: BatchQueue[Job] = BatchQueue(max_batch_size=1)
    for n in range(100):
        queue.put(Job(f"greedy {n}", (WIDE, TALL)[n % 2], n, caller="a"))
        queue.put(Job(f"too {n}", WIDE, n, caller="b"))
    for _ in range(20):
        queue.take(now=200)
    queue.put(Job("lone", TALL, 150, caller="c"))
    assert "lone" in [job.name for _ in range(3) for job in queue.take(now=200)]


def test_a_caller_who_sends_one_after_the_other_gets_its_share_and_no_more() -> None:
    queue: BatchQueue[Job] = BatchQueue(max_batch_size=1)
    for n in range(20):
        queue.put(Job("greedy", WIDE, n, caller="a"))
    order = []
    for n in range(10):
        queue.put(Job("lone", WIDE, 100 + n, caller="b"))
        order += names(queue.take(now=200)) + names(queue.take(now=200))
    assert order.count("lone") == 10
    assert order[-6:].count("lone") == 3


def test_what_is_put_back_or_discarded_leaves_the_turns_as_they_were() -> None:
    queue: BatchQueue[Job] = BatchQueue(max_batch_size=1)
    jobs = [Job(f"{caller}{n}", WIDE, n, caller=caller) for n in range(3) for caller in "ab"]
    for job in jobs:
        queue.put(job)
    (first,) = queue.take(now=9)
    queue.put_back(first)
    queue.discard(jobs[1])
    assert [names(queue.take(now=9)) for _ in range(5)] == [["a0"], ["a1"], ["b1"], ["a2"], ["b2"]]
    assert queue.take(now=9) == []
