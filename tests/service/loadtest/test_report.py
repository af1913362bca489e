from __future__ import annotations

import re
from html import escape
from typing import Any
from xml.etree import ElementTree

import pytest

from service.loadtest.report import render
from service.loadtest.summary import summarise
from tests.support.measurements import measured


def document(*, failures: int = 0, search: dict[str, Any] | None = None) -> dict[str, Any]:
    kinds = ["429 <queue-full>"] * failures + [""] * (200 - failures)
    run = summarise(measured([(2 + n / 20, 0.01 + n / 1000, kind) for n, kind in enumerate(kinds)]))
    run["plan"]["url"] = "http://h/<path>"
    made = {"format": "frcnn-loadtest/1", "measured_at": "2026-11-27T12:00:00+00:00", "service": None, "run": run}
    return made if search is None else made | {"search": search}


def step(rate: float, value_ms: float | None, *, met: bool, enough: bool = True) -> dict[str, Any]:
    return {"rate_per_s": rate, "value_ms": value_ms, "met": met, "kept_up": True, "enough": enough,
            "throughput_per_s": rate, "failed": 0}  # fmt: skip


def text_of(page: str) -> str:
    """What a reader sees; the page must be sound, and load nothing."""
    assert not re.search(r"(src|href)=|@import|url\(|<script", page)
    body = re.search(r"<body>.*</body>", page, re.DOTALL)
    assert body is not None
    return " ".join(ElementTree.fromstring(body[0]).itertext())


def test_the_page_tells_the_figures_and_where_the_time_went() -> None:
    text = text_of(render(document()))
    for words in ("Load test of http://h/<path>", "27 November 2026", "10 arrivals/s", "0.00%", "of 200 failed",
                  "Latency by percentile", "inference", "elsewhere"):  # fmt: skip
        assert words in text
    assert "What failed" not in text


def test_failures_are_listed_by_kind_as_text() -> None:
    page = render(document(failures=2))
    assert escape("429 <queue-full>") in page
    text = text_of(page)
    assert "1.00%" in text
    assert "What failed" in text


def test_without_a_success_there_is_a_page_too() -> None:
    text = text_of(render(document(failures=200)))
    assert "no request succeeded" in text
    assert "nan" not in text


@pytest.mark.parametrize(("found", "told"), [(8.0, "8.0"), (None, "none")])
def test_a_search_shows_each_rate_with_its_verdict(found: float | None, told: str) -> None:
    steps = [step(4, 100.0, met=True), step(8, 180.0, met=found is not None), step(16, None, met=False)]
    search = {"goal": "p99=200ms", "quantile": 0.99, "limit_ms": 200.0, "found_rate_per_s": found, "steps": steps}
    page = render(document(search=search))
    assert f"<b>{told}</b>" in page
    assert "arrivals a second meet p99=200ms" in text_of(page)
    rows = re.findall(r'<tr><td>([\d.]+)</td>.*?<td class="(good|bad)">', page)
    assert rows == [("4.00", "good"), ("8.00", "bad" if found is None else "good"), ("16.00", "bad")]


def test_too_few_requests_get_no_verdict_in_colour() -> None:
    search = {"goal": "p99=200ms", "quantile": 0.99, "limit_ms": 200.0, "found_rate_per_s": 4.0,
              "steps": [step(4, 100.0, met=True, enough=False)]}  # fmt: skip
    assert not re.search(r'<td class="(good|bad)">', render(document(search=search)))
