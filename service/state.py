"""The states of the service, from loading to stopped, and what callers hear of them."""

from __future__ import annotations

from enum import Enum
from typing import Literal, NamedTuple

Status = Literal["ok", "loading", "draining", "failing"]


class State(Enum):
    """Where the service is in its life."""

    LOADING = "the model is being loaded"
    READY = "requests are answered, as long as a device answers"
    FAILING = "no request will be answered again; the process should end"
    DRAINING = "the end is announced; requests are still answered"
    STOPPED = "new requests are rejected; accepted ones are still answered"

    def then(self, following: State) -> State:
        """The following state if it may follow, else this one: a service that drains does not become ready."""
        return following if following in _NEXT[self] else self


_NEXT = {
    State.LOADING: {State.READY, State.FAILING, State.DRAINING, State.STOPPED},
    State.READY: {State.FAILING, State.DRAINING, State.STOPPED},
    State.FAILING: {State.DRAINING, State.STOPPED},
    State.DRAINING: {State.STOPPED},
    State.STOPPED: set[State](),
}


class Condition(NamedTuple):
    """The service's condition in a word and in a sentence."""

    status: Status
    detail: str
