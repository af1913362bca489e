from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from service.loadtest.plan import Goal, Plan, PlanError, Target

PLAN = Plan(target=Target("h", 1, "/detect", tls=False), images=(b"a", b"b"), duration_s=200.0, rate=50.0, warmup_s=0)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://h", Target("h", 80, "/detect", tls=False)),
        ("https://h:8443/", Target("h", 8443, "/detect", tls=True)),
        ("http://[::1]:8000/v1/detect?labels=dog", Target("::1", 8000, "/v1/detect?labels=dog", False, "/v1")),
        ("http://h/detect/", Target("h", 80, "/detect", tls=False)),
        ("https://h/cells/v1/?labels=dog", Target("h", 443, "/cells/v1/detect?labels=dog", True, "/cells/v1")),
        ("http://h?max_detections=3", Target("h", 80, "/detect?max_detections=3", tls=False)),
    ],
)
def test_addresses(url: str, target: Target) -> None:
    assert Target.parse(url) == target


def test_a_prefix_is_that_of_every_path() -> None:
    assert Target.parse("http://h/cells/").url == "http://h:80/cells"
    assert Target.parse("http://h/cells/detect").url == "http://h:80/cells"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://h", "http://", "http://h:x", "http://h:99999"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(PlanError):
        Target.parse(url)


def test_goals() -> None:
    assert Goal.parse("p99=200ms") == Goal(0.99, 0.2)
    assert Goal.parse("p99.9 <= 1.5s") == Goal(0.999, 1.5)
    assert str(Goal.parse("p50=1s")) == "p50 within 1000 ms"
    for wrong in ("p99", "p100=1s", "p99=200", "99=200ms", "p99=0ms", "p99=-1ms"):
        with pytest.raises(PlanError, match="looks like"):
            Goal.parse(wrong)


def test_arrivals_are_a_poisson_process() -> None:
    times = np.array(list(PLAN.arrivals()))
    assert abs(len(times) - 10_000) < 4 * 100  # the count's deviation is its root
    gaps = np.diff(times)
    assert (gaps >= 0).all()
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # of an exponential they are equal
    counts, _ = np.histogram(times, bins=200, range=(0, 200))
    assert counts.var() == pytest.approx(counts.mean(), rel=0.4)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 4 / np.sqrt(len(gaps))


def test_arrivals_are_those_of_the_seed() -> None:
    assert list(PLAN.arrivals()) == list(PLAN.arrivals())
    assert list(PLAN.arrivals()) != list(replace(PLAN, seed=1).arrivals())
