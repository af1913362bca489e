from __future__ import annotations

from model.inference.capture_policy import CapturePolicy
from model.structures import SizeHW

WIDE, TALL, ODD = ((800, 1088), 1), ((1088, 800), 1), ((320, 1344), 4)


def test_by_default_a_graph_is_made_at_once_and_nothing_is_made_ahead() -> None:
    policy = CapturePolicy()
    assert policy.came(ODD)
    assert policy.next([ODD], room=True) is None


def test_a_shape_has_to_come_often_before_others_wait_for_its_graph() -> None:
    policy = CapturePolicy(often=3)
    assert [policy.came(ODD) for _ in range(4)] == [False, False, True, True]
    assert not policy.came(WIDE)


def test_idle_time_goes_to_what_came_most_often_and_then_to_what_is_usual() -> None:
    policy = CapturePolicy([WIDE, TALL], often=100)
    made: list[tuple[SizeHW, int]] = []
    for key in (TALL, ODD, ODD):
        policy.came(key)
    while following := policy.next(made, room=True):
        made.append(following)
    assert made == [ODD, TALL, WIDE]


def test_nothing_is_made_ahead_that_would_drop_what_is_there() -> None:
    assert CapturePolicy([WIDE]).next([], room=False) is None


def test_what_cannot_be_made_is_not_tried_again() -> None:
    policy = CapturePolicy([WIDE, TALL])
    policy.reject(WIDE)
    assert not policy.came(WIDE)
    assert policy.next([], room=True) == TALL
