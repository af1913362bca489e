from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.loadtest.plots import Axis, Line, bar_plot, line_plot, scatter_plot


@given(st.floats(0, 1e6), st.floats(1e-3, 1e6))
def test_an_axis_has_a_few_round_ticks_that_hold_the_values(low: float, span: float) -> None:
    axis = Axis.linear("ms", low, low + span)
    values = [value for value, _ in axis.ticks]
    assert 2 <= len(values) <= 9
    assert values[0] <= low * (1 + 1e-9) + 1e-9
    assert values[-1] >= (low + span) * (1 - 1e-6)
    assert axis.place(values[0]) == pytest.approx(0, abs=1e-9)
    assert axis.place(values[-1]) == pytest.approx(1)
    step = values[1] - values[0]
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9)) in {1, 2, 5, 10}


def test_each_nine_of_a_tail_is_as_wide_as_the_one_before() -> None:
    axis = Axis.tail("share", 0.999)
    assert [words for _, words in axis.ticks] == ["p0", "p50", "p90", "p99", "p99.9"]
    assert [axis.place(share) for share in (0.0, 0.9, 0.99, 0.999)] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def svg(figure: str) -> ElementTree.Element:
    """The plot of a figure, which must be sound XML."""
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", figure, re.DOTALL)[0])  # type: ignore[index]


def test_a_line_is_broken_where_there_is_no_value() -> None:
    x, y = Axis.linear("s", 0, 4), Axis.linear("ms", 0, 10)
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, math.nan), (3.0, 4.0)]
    figure = line_plot("Latency & <time>", x, y, [Line("p50", points), Line("max", points)], limit=5)
    assert "Latency &amp; &lt;time&gt;" in figure
    drawn = svg(figure)
    lines = [element for element in drawn.iter() if element.tag.endswith("polyline")]
    dots = [element for element in drawn.iter() if element.tag.endswith("circle")]
    assert [len(line.attrib["points"].split()) for line in lines] == [2, 2]
    assert len(dots) == 2  # of the value that stands alone, in each line
    assert "nan" not in figure


def test_values_beyond_the_axis_stay_in_the_plot() -> None:
    x, y = Axis.linear("rate", 0, 10), Axis.linear("ms", 0, 100)
    figure = scatter_plot("Rates", x, y, [(5, 1e9, "bad", "<b>slow</b>"), (5, 50, "good", "met")], limit=200)
    heights = [float(circle.attrib["cy"]) for circle in svg(figure).iter() if circle.tag.endswith("circle")]
    assert 0 < heights[0] < heights[1]
    assert "&lt;b&gt;slow" in figure


def test_bars_are_as_high_as_their_values() -> None:
    x, y = Axis.linear("ms", 0, 4), Axis.linear("requests", 0, 4)
    figure = bar_plot("Latencies", x, y, [(0, 1, 4), (1, 2, 1), (2, 2, 0)], lambda a, b, n: f"{a} to {b}: {n}")
    bars = [bar.attrib for bar in svg(figure).iter() if bar.tag.endswith("rect")]
    heights = [float(bar["height"]) for bar in bars]
    assert heights[0] == pytest.approx(4 * heights[1], abs=0.5)
    assert heights[2] == pytest.approx(0, abs=0.1)
    assert float(bars[2]["width"]) > 0  # and can be pointed at
