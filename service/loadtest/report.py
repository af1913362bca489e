"""One HTML file about a load test, which loads nothing from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from typing import Any, TypeAlias

from service.loadtest.display import load_in_words, verdict_of
from service.loadtest.plots import Axis, Line, bar_plot, line_plot, scatter_plot

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #667080; --page: #f6f7f9; --card: #ffffff; --rule: #e3e6ea;
  --s0: #2563eb; --s1: #e8710a; --s2: #0d9488; --good: #15803d; --bad: #c81e1e; --note: #fff4d6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #98a2b3; --page: #111418; --card: #1a1e24;
  --rule: #2d333b; --s0: #6ea0ff; --s1: #ff9d4d; --s2: #2dd4bf; --good: #4ade80; --bad: #f87171; --note: #3a2f12; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px 20px 48px; max-width: 1240px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; margin: 0; } h2 { font-size: 17px; margin: 28px 0 10px; } p { margin: 4px 0 0; }
.soft, .tick, .name { color: var(--soft); fill: var(--soft); }
.cards, .plots { display: grid; gap: 14px; }
.cards { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); margin: 20px 0; }
.plots { grid-template-columns: repeat(auto-fill, minmax(min(480px, 100%), 1fr)); margin: 14px 0; }
.card, figure, .table { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.card { padding: 12px 16px; } .card b { display: block; font-size: 26px; line-height: 1.25; }
.card.bad b { color: var(--bad); } .card.good b { color: var(--good); }
figure { margin: 0; padding: 12px 14px 6px; } svg { display: block; width: 100%; height: auto; }
figcaption { font-weight: 600; display: flex; justify-content: space-between; gap: 12px; flex-wrap: wrap; }
.key { font-weight: 400; display: flex; gap: 14px; } .key i { display: inline-block; width: 14px; height: 4px;
  border-radius: 2px; margin: 0 6px 3px 0; }
i.s0 { background: var(--s0); } i.s1 { background: var(--s1); } i.s2 { background: var(--s2); }
.tick { font-size: 12px; } .name { font-size: 12px; } .end { text-anchor: end; } .middle { text-anchor: middle; }
.grid { stroke: var(--rule); } .axis { stroke: var(--soft); } .bar { fill: var(--s0); } .bar:hover { fill: var(--s1); }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
.line.s0 { stroke: var(--s0); } .line.s1 { stroke: var(--s1); } .line.s2 { stroke: var(--s2); }
.limit { stroke: var(--bad); stroke-dasharray: 6 4; stroke-width: 1.5; }
circle { fill: var(--soft); } circle.good { fill: var(--good); } circle.bad { fill: var(--bad); }
.dot.s0 { fill: var(--s0); } .dot.s1 { fill: var(--s1); } .dot.s2 { fill: var(--s2); }
.table { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 6px 14px; border-top: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } tr:first-child > * { border-top: 0; }
.facts td:last-child { text-align: left; width: 75%; white-space: normal; overflow-wrap: anywhere; }
td.good { color: var(--good); } td.bad { color: var(--bad); }
.note { background: var(--note); border-radius: 8px; padding: 8px 14px; margin: 8px 0; }
@media (max-width: 560px) { body { padding: 20px 12px 32px; } figure { padding: 10px 8px 4px; }
  .tick, .name { font-size: 15px; }
  .facts td:first-child { white-space: normal; } .facts td:last-child { width: 60%; } }
"""

Document = dict[str, Any]
Row: TypeAlias = Sequence[str | tuple[str, str]]  # words, or words and the class of their cell


def render(document: Document) -> str:
    """The report of a document of `frcnn loadtest`."""
    run, search = document["run"], document.get("search")
    body = [_header("Load test", document), _cards(run, search), _notes(run["warnings"])]
    if search is not None:
        body += ["<h2>The search</h2>", f'<div class="plots">{_search_plot(search)}</div>', _search_table(search)]
        body.append(f"<h2>The run at {run['plan']['rate_per_s']:.2f} arrivals/s</h2>")
    body.append(f'<div class="plots">{_curve(run)}{_timelines(run)}{_distributions(run)}{_stages(run)}</div>')
    body += ["<h2>Where the time went</h2>", _spread_table(run), _failure_table(run), _setup(document)]
    return _page("Load test", body)


def _page(title: str, body: Iterable[str]) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _header(title: str, document: Document) -> str:
    plan = document["run"]["plan"]
    when = datetime.fromisoformat(document["measured_at"]).strftime("%d %B %Y, %H:%M %Z")
    return (
        f"<h1>{title} of {escape(plan['url'])}</h1>"
        f'<p class="soft">{when} · {plan["loop"]} loop, {load_in_words(plan["rate_per_s"], plan["concurrency"])} · '
        f"{plan['duration_s']:.4g} s after {plan['warmup_s']:.4g} s of warm-up</p>"
    )


def _cards(run: Document, search: Document | None) -> str:
    latency = run["latency_ms"] or {}
    failed = f"{run['failed'] / max(run['requests'], 1):.2%}"
    cards = [
        (f"{run['throughput_per_s']:,.1f}", "answers a second", ""),
        (_number(latency.get("p50")), "p50, ms", ""),
        (_number(latency.get("p99")), "p99, ms", ""),
        (_number(latency.get("max")), "slowest, ms", ""),
        (
            failed,
            f"of {run['requests']:,} failed",
            "bad" if run["failed"] else _verdict(True) if latency.get("p99") else "",
        ),
    ]
    if search is not None:
        found = search["found_rate_per_s"]
        words = f"arrivals a second meet {search['goal']}"
        enough = all(step["enough"] for step in search["steps"] if step["rate_per_s"] == found)
        kind = _verdict(found is not None) if enough else ""
        cards.insert(0, ("none" if found is None else f"{found:,.1f}", words, kind))
    inner = "".join(
        f'<div class="card {kind}"><b>{value}</b><span class="soft">{escape(words)}</span></div>'
        for value, words, kind in cards
    )
    return f'<div class="cards">{inner}</div>'


def _verdict(good: bool) -> str:
    return "good" if good else "bad"


def _notes(notes: Iterable[str]) -> str:
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _curve(run: Document) -> str:
    curve = run["curve_ms"]
    if not curve:
        return ""
    x, y = Axis.tail("share of the requests", curve[-1][0]), Axis.linear("latency, ms", 0, curve[-1][1])
    return line_plot("Latency by percentile", x, y, [Line("", curve)])


def _timelines(run: Document) -> str:
    rows, duration_s = run["timeline"], run["plan"]["duration_s"]
    middle = duration_s / len(rows) / 2
    latencies = [
        Line(percentile, [(row["at_s"] + middle, _or_nan(row[f"{percentile}_ms"])) for row in rows])
        for percentile in ("p50", "max")
    ]
    rates = [Line("", [(row["at_s"] + middle, row["throughput_per_s"]) for row in rows])]
    x = Axis.linear("seconds", 0, duration_s)
    return line_plot("Latency over time", x, Axis.linear("ms", 0, _top(latencies)), latencies) + line_plot(
        "Answers a second over time", x, Axis.linear("answers/s", 0, _top(rates)), rates
    )


def _top(lines: Sequence[Line]) -> float:
    return max((y for line in lines for _, y in line.points if not math.isnan(y)), default=1.0)


def _distributions(run: Document) -> str:
    plots = []
    edges, counts = run["histogram_ms"]["edges"], run["histogram_ms"]["counts"]
    if counts:
        plots.append(
            bar_plot(
                "Latencies up to the slowest half per cent",
                Axis.linear("ms", edges[0], edges[-1]),
                Axis.linear("requests", 0, max(counts)),
                list(zip(edges, edges[1:], counts, strict=False)),
                lambda begin, end, count: f"{begin:.1f} to {end:.1f} ms: {count:g} requests",
            )
        )
    sizes = {int(size): times for size, times in run["batch_sizes"].items()}
    if sizes:
        ticks = [(size, str(size)) for size in sizes]
        whole = sum(sizes.values())
        width = max(sizes) + 1
        plots.append(
            bar_plot(
                "Images in the batch that a request shared",
                Axis("images", ticks, lambda size: size / width),
                Axis.linear("% of the requests", 0, 100 * max(sizes.values()) / whole),
                [(size - 0.4, size + 0.4, 100 * times / whole) for size, times in sizes.items()],
                lambda begin, end, share: f"{(begin + end) / 2:g}: {share:.1f} %",
            )
        )
    return "".join(plots)


def _stages(run: Document) -> str:
    means = [(stage, spread["mean"]) for stage, spread in run["stages_ms"].items() if spread]
    if not means:
        return ""
    ticks = [(place + 0.5, stage) for place, (stage, _) in enumerate(means)]
    return bar_plot(
        "Where the time went, on average",
        Axis("stage", ticks, lambda place: place / len(means)),
        Axis.linear("ms", 0, max(mean for _, mean in means)),
        [(place + 0.15, place + 0.85, mean) for place, (_, mean) in enumerate(means)],
        lambda begin, _, mean: f"{means[int(begin)][0]}: {mean:.1f} ms",
    )


def _search_plot(search: Document) -> str:
    limit_ms = search["limit_ms"]
    top_ms = 3 * limit_ms  # what is slower, or failed, lies at the top
    dots = [
        (step["rate_per_s"], top_ms if step["value_ms"] is None else min(step["value_ms"], top_ms), _colour(step),
         f"{step['rate_per_s']:.2f}/s: {_number(step['value_ms'])} ms, {step['failed']} failed, {verdict_of(step)}")
        for step in search["steps"]
    ]  # fmt: skip
    x = Axis.linear("arrivals/s", 0, max(dot[0] for dot in dots))
    y = Axis.linear(f"p{search['quantile'] * 100:g}, ms", 0, top_ms)
    return scatter_plot(f"Rates tried, and the goal: {search['goal']}", x, y, dots, limit=limit_ms)


def _colour(step: Document) -> str:
    """The class of a rate's verdict; none where its requests were too few to judge by."""
    return _verdict(step["met"]) if step["enough"] else ""


def _search_table(search: Document) -> str:
    rows: list[Row] = [
        [
            f"{step['rate_per_s']:.2f}",
            _number(step["value_ms"]),
            _number(step["throughput_per_s"]),
            str(step["failed"]),
            (verdict_of(step), _colour(step)),
        ]
        for step in sorted(search["steps"], key=lambda step: float(step["rate_per_s"]))
    ]
    return _table(["arrivals/s", f"p{search['quantile'] * 100:g} ms", "answers/s", "failed", ""], rows)


def _spread_table(run: Document) -> str:
    if run["latency_ms"] is None:
        return _notes(["no request succeeded"])
    spreads = {
        "latency": run["latency_ms"],
        **run["stages_ms"],
        "sent later than meant": run["generator"]["late_ms"],
    }
    rows = [[name, *map(_number, spread.values())] for name, spread in spreads.items() if spread]
    return _table(["ms", *run["latency_ms"]], rows)


def _failure_table(run: Document) -> str:
    if not run["failures"]:
        return ""
    rows = [[failure, f"{times:,}"] for failure, times in run["failures"].items()]
    return "<h2>What failed</h2>" + _table(["", "requests"], rows)


def _setup(document: Document) -> str:
    run, service = document["run"], document.get("service") or {}
    model = service.get("model") or {}
    facts = {
        **{name.replace("_", " "): value for name, value in run["plan"].items() if value is not None},
        "generator's processor core in use": f"{run['generator']['busy']:.0%}",
        "model": " ".join(filter(None, (model.get("name"), model.get("weights")))) or None,
        "devices": ", ".join(service.get("devices", [])) or None,
        "precision": service.get("precision"),
        "largest batch": service.get("max_batch_size"),
        "service's version": service.get("version"),
    }
    rows = [
        [name, f"{value:.4g}" if isinstance(value, float) else str(value)]
        for name, value in facts.items()
        if value is not None
    ]
    return f'<h2>The test</h2><div class="facts">{_table(["", ""], rows)}</div>'


def _table(head: Sequence[str], rows: Iterable[Row]) -> str:
    parts = ["<tr>", *(f"<th>{escape(words)}</th>" for words in head), "</tr>"] if any(head) else []
    for row in rows:
        parts.append("<tr>")
        for cell in row:
            words, kind = cell if isinstance(cell, tuple) else (cell, "")
            parts.append(f'<td class="{kind}">{escape(words)}</td>' if kind else f"<td>{escape(words)}</td>")
        parts.append("</tr>")
    return f'<div class="table"><table>{"".join(parts)}</table></div>'


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
