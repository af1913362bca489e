from __future__ import annotations

import json
import math

import numpy as np
import pytest

from service.loadtest.summary import quantile, summarise
from tests.support.measurements import measured


def test_a_quantile_is_the_smallest_value_that_the_share_does_not_exceed() -> None:
    values = np.array([4.0, 1.0, 3.0, 2.0])
    assert [quantile(values, share) for share in (0, 0.25, 0.26, 0.5, 0.75, 0.99, 1)] == [1, 1, 2, 2, 3, 4, 4]
    assert quantile(np.array([1, math.inf]), 0.5) == 1
    assert quantile(np.array([1, math.inf]), 0.51) == math.inf


def test_figures_worked_out_by_hand() -> None:
    rows = [(2 + i / 10, (i + 1) / 1000, "") for i in range(100)]
    rows[9] = (rows[9][0], 7.0, "429 queue-full")
    rows += [(1.0, 5.0, ""), (1.99, 0.001, ""), (12.0, 0.001, "")]  # warm-up, one answered after it, and after the end
    document = summarise(measured(rows))
    assert (document["requests"], document["succeeded"], document["failed"]) == (100, 99, 1)
    assert document["failures"] == {"429 queue-full": 1}
    assert document["offered_per_s"] == 10
    # 99 of the measured ones, less the last, answered at 12.0, and the one of the warm-up answered at 6.0
    assert document["throughput_per_s"] == pytest.approx(9.9)
    latency = document["latency_ms"]
    assert (latency["min"], latency["max"]) == (1, 100)
    assert latency["p50"] == 51  # the 50th of 1..9, 11..100
    assert latency["p95"] == 96
    assert latency["p99"] is latency["p99.9"] is None  # 99 latencies do not tell them
    assert document["batch_sizes"] == {"4": 99}
    assert document["stages_ms"]["inference"]["p50"] == 5
    assert document["stages_ms"]["elsewhere"]["p50"] == pytest.approx(44)
    assert document["stages_ms"]["elsewhere"]["min"] == 0
    assert len(document["timeline"]) == 10
    assert sum(row["failed"] for row in document["timeline"]) == 1
    assert sum(document["histogram_ms"]["counts"]) + document["histogram_ms"]["over"] == 99
    assert document["generator"]["late_ms"]["p50"] == pytest.approx(1)
    assert any("1 requests failed" in warning for warning in document["warnings"])
    shares, values = zip(*document["curve_ms"], strict=True)
    assert list(values) == sorted(values)
    assert shares[0] == 0


def test_few_requests_tell_no_far_percentile() -> None:
    document = summarise(measured([(3.0 + i / 100, 0.01, "") for i in range(4)]))
    latency = document["latency_ms"]
    assert latency["p50"] == latency["p75"] == latency["max"] == 10
    assert [latency[name] for name in ("p90", "p95", "p99", "p99.9")] == [None] * 4
    (warning,) = document["warnings"]
    assert "4 requests are too few to tell p90, p95, p99, p99.9" in warning
    assert summarise(measured([(3.0 + i / 100, 0.01, "") for i in range(100)]))["latency_ms"]["p99"] == 10


def test_a_generator_that_measures_itself_says_so() -> None:
    rows = [(3.0, 0.01, "")] * 100
    (warning,) = summarise(measured(rows, busy=0.95))["warnings"]
    assert "95%" in warning
    assert "more --workers will" in warning
    assert summarise(measured(rows))["warnings"] == []


@pytest.mark.parametrize("rows", [[], [(3.0, 0.1, "503")]])
def test_nothing_succeeded(rows: list[tuple[float, float, str]]) -> None:
    document = summarise(measured(rows))
    assert document["latency_ms"] is None
    assert document["warnings"]
    assert "NaN" not in json.dumps(document)
