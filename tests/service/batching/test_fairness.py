from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.batching.fairness import Turns


def test_one_caller_is_served_in_the_order_of_arrival() -> None:
    turns = Turns()
    entered = [turns.enter("a", cost) for cost in (1, 7, 1, 64, 2)]
    assert entered == sorted(set(entered))


def test_a_new_caller_goes_before_the_next_piece_of_one_who_was_just_served() -> None:
    turns = Turns()
    waiting = [turns.enter("a") for _ in range(10)]
    for served in waiting[:4]:
        turns.leave("a", served)
    assert turns.enter("b") == waiting[3]
    assert turns.enter("b") == waiting[4]


def test_a_cheap_piece_goes_before_expensive_ones_of_many_callers() -> None:
    turns = Turns()
    expensive = [turns.enter(f"greedy {number}", 50) for number in range(64)]
    assert turns.enter("lone", 2) < min(expensive)


def test_cheap_pieces_of_callers_without_end_do_not_keep_an_expensive_one_waiting() -> None:
    turns = Turns()
    expensive = turns.enter("large", 50)
    for served in range(50):
        turn = turns.enter(f"small {served}", 2)
        if turn > expensive:
            break
        turns.leave(f"small {served}", turn)
    else:
        raise AssertionError("the expensive piece is never served")
    assert served <= 50


def test_who_gives_up_does_not_move_the_others() -> None:
    turns = Turns()
    first = turns.enter("a")
    turns.leave("a")
    assert turns.enter("b") == first


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), st.integers(1, 9)), max_size=200))
def test_of_callers_with_work_none_is_served_two_of_the_largest_pieces_more_than_another(
    steps: list[tuple[str, bool, int]],
) -> None:
    turns, waiting = Turns(), []
    backlogged: dict[str, int] = {}  # the cost served since all of them have work
    for number, (caller, serves, cost) in enumerate(steps):
        if not serves:
            waiting.append((turns.enter(caller, cost), number, caller, cost))
            continue
        if waiting:
            waiting.sort()
            turn, _, served, done = waiting.pop(0)
            turns.leave(served, turn)
            backlogged[served] = backlogged.get(served, 0) + done
        present = {caller for _, _, caller, _ in waiting}
        backlogged = {caller: done for caller, done in backlogged.items() if caller in present}
        if present != set(backlogged):
            backlogged = dict.fromkeys(present, 0)
        if backlogged:
            assert max(backlogged.values()) - min(backlogged.values()) <= 2 * 9


def test_callers_without_work_are_forgotten() -> None:
    turns = Turns()
    for number in range(5000):
        turns.leave(number, turns.enter(number))
    assert len(turns._callers) <= 1024
