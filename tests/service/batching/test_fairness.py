from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.batching.fairness import Rounds


def test_one_caller_is_served_in_the_order_of_arrival() -> None:
    rounds = Rounds()
    entered = [rounds.enter("a") for _ in range(5)]
    assert entered == sorted(set(entered))


def test_a_new_caller_enters_in_the_round_that_is_served() -> None:
    rounds = Rounds()
    waiting = [rounds.enter("a") for _ in range(10)]
    for served in waiting[:4]:
        rounds.leave("a", served)
    assert rounds.enter("b") == waiting[3]
    assert rounds.enter("b") == waiting[4]


def test_who_gives_up_does_not_move_the_others() -> None:
    rounds = Rounds()
    first = rounds.enter("a")
    rounds.leave("a")
    assert rounds.enter("b") == first


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=200))
def test_among_callers_with_work_none_is_served_twice_more_than_another(steps: list[tuple[str, bool]]) -> None:
    rounds, waiting = Rounds(), []
    backlogged: dict[str, int] = {}  # since all of them have work: served
    for number, (caller, serves) in enumerate(steps):
        if not serves:
            waiting.append((rounds.enter(caller), number, caller))
            continue
        if waiting:
            waiting.sort()
            round_, _, served = waiting.pop(0)
            rounds.leave(served, round_)
            backlogged[served] = backlogged.get(served, 0) + 1
        present = {caller for _, _, caller in waiting}
        backlogged = {caller: count for caller, count in backlogged.items() if caller in present}
        if present != set(backlogged):
            backlogged = dict.fromkeys(present, 0)
        if backlogged:
            assert max(backlogged.values()) - min(backlogged.values()) <= 2


def test_callers_without_work_are_forgotten() -> None:
    rounds = Rounds()
    for number in range(5000):
        rounds.leave(number, rounds.enter(number))
    assert len(rounds._callers) <= 1024
