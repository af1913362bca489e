from __future__ import annotations

import os
import sys
import threading

import pytest

from service.threads import lower_priority, start_daemon
from tests.support.processes import niceness

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own elsewhere")


def in_thread_of_lower_priority(by: int) -> dict[str, int]:
    """The niceness of a thread after `lower_priority`, of a thread that it starts, and of a daemon."""
    found: dict[str, int] = {}

    def note(name: str) -> None:
        found[name] = niceness()

    def run() -> None:
        lower_priority(threading.current_thread(), by)
        note("own")
        started = threading.Thread(target=note, args=["started"])
        started.start()
        started.join(20)
        start_daemon(lambda: note("daemon"), name="daemon").join(20)

    start_daemon(run, name="low").join(20)
    return found


def test_a_daemon_has_the_usual_priority_whoever_starts_it() -> None:
    low = min(niceness() + 7, 19)
    assert in_thread_of_lower_priority(7) == {"own": low, "started": low, "daemon": niceness()}


def test_all_works_where_no_priority_may_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", denied)
    assert in_thread_of_lower_priority(7) == dict.fromkeys(["own", "started", "daemon"], niceness())
