"""Plots as SVG that stands in an HTML page: colours come from the page's style, so that they fit light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeAlias

_WIDTH, _HEIGHT = 560, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 26, 14, 44

Points: TypeAlias = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """How values lie along a side of a plot.

    Args:
        ticks: values and what is written at them.
        place: from a value to 0..1 along the axis.
    """

    title: str
    ticks: Sequence[tuple[float, str]]
    place: Callable[[float], float]

    @classmethod
    def linear(cls, title: str, low: float, high: float) -> Axis:
        """From `low` to at least `high`, with round ticks."""
        span = max(high - low, 1e-9)
        step = 10 ** math.floor(math.log10(span / 4))
        step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 6)
        first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
        last = max(last, first + 1)
        bottom, width = first * step, (last - first) * step
        ticks = [(n * step, f"{n * step:,.10g}") for n in range(first, last + 1)]
        return cls(title, ticks, lambda value: (value - bottom) / width)

    @classmethod
    def tail(cls, title: str, most: float) -> Axis:
        """Shares from 0 to `most` below 1, each nine as wide as the one before."""
        end = -math.log10(1 - most)
        ticks = [(share, f"p{share * 100:g}") for share in (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999) if share <= most]
        return cls(title, ticks, lambda share: -math.log10(max(1 - share, 1e-12)) / end)


@dataclass(frozen=True, slots=True)
class Line:
    """Points joined by a line. Where y is NaN, the line is broken."""

    name: str
    points: Points


def line_plot(title: str, x: Axis, y: Axis, lines: Sequence[Line], *, limit: float | None = None) -> str:
    """Lines over one another.

    Args:
        limit: drawn across, at this y.
    """
    parts = [_frame(x, y)]
    if limit is not None:
        at = _y(y, limit)
        parts.append(f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
    for number, line in enumerate(lines):
        pieces: list[list[str]] = [[]]
        for px, py in line.points:
            if math.isnan(py):
                pieces.append([])
            else:
                pieces[-1].append(f"{_x(x, px):.1f},{_y(y, py):.1f}")
        parts += [_joined(piece, number) for piece in pieces if piece]
    return _plot(title, parts, [line.name for line in lines] if len(lines) > 1 else [])


def _joined(piece: Sequence[str], number: int) -> str:
    """A line through points; a dot where there is only one."""
    if len(piece) == 1:
        x, y = piece[0].split(",")
        return f'<circle class="dot s{number}" cx="{x}" cy="{y}" r="4"/>'
    return f'<polyline class="line s{number}" points="{" ".join(piece)}"/>'


def bar_plot(
    title: str,
    x: Axis,
    y: Axis,
    bars: Sequence[tuple[float, float, float]],
    words: Callable[[float, float, float], str],
) -> str:
    """Bars side by side.

    Args:
        words: what is shown when a bar is pointed at.
    """
    parts = [_frame(x, y)]
    for begin, end, value in bars:
        left, right, top = _x(x, begin), _x(x, end), _y(y, value)
        parts.append(
            f'<rect class="bar" x="{left + 0.5:.1f}" width="{max(right - left - 1, 0.5):.1f}" y="{top:.1f}" '
            f'height="{_HEIGHT - _BOTTOM - top:.1f}"><title>{escape(words(begin, end, value))}</title></rect>'
        )
    return _plot(title, parts, [])


def scatter_plot(title: str, x: Axis, y: Axis, dots: Sequence[tuple[float, float, str, str]], *, limit: float) -> str:
    """Dots with their class and what is shown when one is pointed at, and a limit across."""
    at = _y(y, limit)
    parts = [_frame(x, y), f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>']
    parts += [
        f'<circle class="{kind}" cx="{_x(x, px):.1f}" cy="{_y(y, py):.1f}" r="5">'
        f"<title>{escape(words)}</title></circle>"
        for px, py, kind, words in dots
    ]
    return _plot(title, parts, [])


def _x(axis: Axis, value: float) -> float:
    return _LEFT + min(max(axis.place(value), 0), 1) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - min(max(axis.place(value), 0), 1) * (_HEIGHT - _TOP - _BOTTOM)


def _frame(x: Axis, y: Axis) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for value, words in y.ticks:
        at = _y(y, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 7}" y="{at + 4:.1f}">{escape(words)}</text>')
    for value, words in x.ticks:
        parts.append(f'<text class="tick middle" x="{_x(x, value):.1f}" y="{bottom + 17}">{escape(words)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="name middle" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 8}">{escape(x.title)}</text>')
    middle = (_TOP + bottom) / 2
    parts.append(f'<text class="name middle" transform="translate(14 {middle}) rotate(-90)">{escape(y.title)}</text>')
    return "".join(parts)


def _plot(title: str, parts: Sequence[str], names: Sequence[str]) -> str:
    key = "".join(f'<span><i class="s{number}"></i>{escape(name)}</span>' for number, name in enumerate(names))
    return (
        f'<figure><figcaption>{escape(title)}<span class="key">{key}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )
