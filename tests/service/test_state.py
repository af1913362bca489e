from __future__ import annotations

from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from service.state import State

ORDER = [State.LOADING, State.READY, State.FAILING, State.DRAINING, State.STOPPED]


@given(st.lists(st.sampled_from(State)))
def test_no_state_is_left_for_an_earlier_one(asked: list[State]) -> None:
    state = State.LOADING
    for following in asked:
        before, state = state, state.then(following)
        assert ORDER.index(state) >= ORDER.index(before)
        assert state in (before, following)


@given(st.lists(st.sampled_from(State)))
def test_the_end_is_always_reached_and_never_left(asked: list[State]) -> None:
    stopped = reduce(State.then, asked, State.LOADING).then(State.STOPPED)
    assert reduce(State.then, asked, stopped) is State.STOPPED


def test_a_service_that_drains_does_not_become_ready_or_failing() -> None:
    assert State.DRAINING.then(State.READY) is State.DRAINING
    assert State.DRAINING.then(State.FAILING) is State.DRAINING
    assert State.LOADING.then(State.READY).then(State.DRAINING) is State.DRAINING
