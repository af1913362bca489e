from __future__ import annotations

import pytest

from service.client import Timing


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('decode;dur=1.5, queue;dur=0, batch;desc="4"', Timing({"decode": 1.5, "queue": 0.0}, 4)),
        ("inference;dur=2;desc=x, total; dur=3", Timing({"inference": 2.0, "total": 3.0})),
        ("nonsense, a;dur=., b;dur=1.2.3", Timing()),
        ("", Timing()),
    ],
)
def test_server_timing(header: str, expected: Timing) -> None:
    assert Timing.parse(header) == expected
