from __future__ import annotations

from typing import Any

import pytest

from service.web.callers import caller_of, note_key


def scope(host: str | None) -> dict[str, Any]:
    return {"type": "http", "client": None if host is None else (host, 1234)}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("testclient", "testclient", True),
        (None, None, True),
    ],
)
def test_callers_are_told_apart_by_their_address(one: str | None, other: str | None, same: bool) -> None:
    assert (caller_of(scope(one), "auto") == caller_of(scope(other), "auto")) is same
    assert caller_of(scope(one), "off") == caller_of(scope(other), "off")


def test_a_key_tells_more_than_an_address_unless_the_address_is_asked_for() -> None:
    one, other, third = scope("10.0.0.1"), scope("10.0.0.2"), scope("10.0.0.1")
    note_key(one, b"a")
    note_key(other, b"a")
    note_key(third, b"b")
    assert caller_of(one, "auto") == caller_of(other, "auto") != caller_of(third, "auto")
    assert caller_of(one, "address") == caller_of(third, "address") != caller_of(other, "address")
    assert caller_of(one, "off") == caller_of(third, "off")
