"""`frcnn loadtest`: how much load a service bears, and how fast it answers under it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.errors import INTERRUPTED, USAGE, fail, say, stderr, stdout
from service.cli.options import Json, number
from service.images.files import image_files

if TYPE_CHECKING:
    from service.loadtest.fleet import Measured
    from service.loadtest.plan import Goal, Plan, Target
    from service.loadtest.search import Step

_FORMAT = "frcnn-loadtest/1"
_GUESS_S = 5.0  # of one caller's pace, from which the search begins


def loadtest(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="The service's address; a path prefix and a query may follow.")
    ],
    images: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the images to send, or one.")],
    rate: Annotated[
        float | None, number(min=1e-3, help="Open loop: N arrivals a second on average, at random.")
    ] = None,
    concurrency: Annotated[
        int | None, number(min=1, help="Closed loop: N callers, each waiting for its answer.")
    ] = None,
    slo: Annotated[
        str | None, typer.Option(metavar="p99=200ms", help="Find the highest rate that meets this goal.")
    ] = None,
    duration: Annotated[float, number(min=0.1, help="Seconds to measure; with --slo, at each rate.")] = 30.0,
    warmup: Annotated[float, number(min=0, help="Seconds of the same load before.")] = 3.0,
    workers: Annotated[int, number(min=1, help="Processes that make the load.")] = 1,
    timeout: Annotated[float, number(min=0.001, max=3600, help="Seconds that an answer may take.")] = 60.0,
    max_in_flight: Annotated[
        int, number(min=1, help="Open requests of one process; arrivals beyond are dropped and counted.")
    ] = 1000,
    seed: Annotated[int, number(min=0, help="Of the arrivals and the images' order.")] = 0,
    api_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", envvar="FRCNN_API_KEY", show_envvar=True, help="Key of the service, if it asks."),
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="HTML", help="Write a report with plots.")] = None,
    as_json: Json = False,
) -> None:
    """Put a service under load and measure how fast it answers. Ctrl-C ends it early, with the figures until then.

    In open loop (--rate) latency counts from when a request was to be sent, so a service that falls behind shows it.

    Example: frcnn loadtest http://127.0.0.1:8000 --images photos --rate 5 --duration 30 --report report.html
    """
    from service.loadtest.plan import Goal, Plan, PlanError, Target

    _check_kind(rate, concurrency, slo)
    if report is not None and not report.resolve().parent.is_dir():  # before the test, and not after it
        fail(f"{report}: there is no such folder", code=USAGE)
    try:
        goal = None if slo is None else Goal.parse(slo)
        plan = Plan(
            target=Target.parse(url),
            images=_images(images),
            rate=rate,
            concurrency=concurrency,
            duration_s=duration,
            warmup_s=warmup,
            timeout_s=timeout,
            api_key=api_key,
            most_in_flight=max_in_flight,
            seed=seed,
        )
    except PlanError as error:
        fail(str(error), code=USAGE)
    document = _measured(plan, goal, workers)
    _give(document, report, as_json)
    if document["interrupted"]:
        fail("interrupted", code=INTERRUPTED)
    if goal is not None and document["search"]["found_rate_per_s"] is None:
        fail(f"no rate that was tried met the goal: {goal}")
    if document["run"]["succeeded"] == 0:
        fail("no request succeeded")


def _check_kind(rate: float | None, concurrency: int | None, slo: str | None) -> None:
    """Exactly one kind of load is asked for; a search may have a rate to begin with."""
    if slo is not None and concurrency is not None:
        fail("--slo searches for a rate, and takes no --concurrency", code=USAGE)
    if slo is None and (rate is None) == (concurrency is None):
        fail("give one of --rate, --concurrency and --slo", code=USAGE)


def _measured(plan: Plan, goal: Goal | None, workers: int) -> dict[str, Any]:
    about = {
        "format": _FORMAT,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "service": _service(plan.target, plan.api_key),
    }
    return about | (_single(plan, workers) if goal is None else _search(plan, goal, workers))


def _images(path: Path) -> tuple[bytes, ...]:
    try:
        files = image_files([path])
    except FileNotFoundError as error:
        fail(str(error), code=USAGE)
    if not files:
        fail(f"no images in {path}", code=USAGE)
    return tuple(file.path.read_bytes() for file in files)


def _service(target: Target, api_key: str | None) -> dict[str, Any] | None:
    """What `/healthz` says; None if something else answers there, which can be tested all the same."""
    from service.client.client import DetectionClient
    from service.client.errors import ClientError, ConnectionLostError, DeadlineError

    with DetectionClient(target.url, api_key=api_key, timeout_s=10) as client:
        try:
            health = client.health()
        except (ConnectionLostError, DeadlineError) as error:
            fail(f"no service answers: {error}")
        except ClientError:
            return None
    if health["status"] != "ok":
        fail(f"the service is {health['status']}: {health.get('detail', '')}")
    return health


def _single(plan: Plan, workers: int) -> dict[str, Any]:
    from service.loadtest.summary import summarise

    measured = _run_plan(plan, workers)
    return {"interrupted": measured.interrupted, "run": summarise(measured)}


def _search(plan: Plan, goal: Goal, workers: int) -> dict[str, Any]:
    from service.loadtest.search import best, highest_rate
    from service.loadtest.summary import summarise

    def whole(plan: Plan, workers: int) -> Measured:
        measured = _run_plan(plan, workers)
        if measured.interrupted:  # a part of a rate's time does not show whether the rate meets the goal
            raise KeyboardInterrupt
        return measured

    steps: list[Step] = []

    def note(step: Step) -> None:
        steps.append(step)
        verdict = "met" if step.met else "missed" if step.kept_up else "answers fell behind arrivals"
        say(f"{step.rate:.2f} arrivals/s: {goal}: {verdict} ({step.value_s * 1000:.1f} ms)")

    interrupted = False
    try:
        first_rate = plan.rate
        if first_rate is None:
            alone = replace(plan, concurrency=1, duration_s=min(plan.duration_s, _GUESS_S))
            first_rate = max(summarise(whole(alone, 1))["throughput_per_s"], 1 / plan.duration_s)
        highest_rate(lambda rate: whole(replace(plan, rate=rate), workers), goal, first_rate, on_step=note)
    except KeyboardInterrupt:
        if not steps:
            raise
        interrupted = True
    found = best(steps)
    runs = [summarise(step.measured) for step in steps]
    run = runs[steps.index(found or min(steps, key=lambda step: step.rate))]
    run["warnings"] += _search_warnings(steps, run, goal, interrupted=interrupted)
    return {"interrupted": interrupted, "run": run, "search": _search_json(steps, runs, goal)}


def _search_warnings(steps: list[Step], run: dict[str, Any], goal: Goal, *, interrupted: bool) -> list[str]:
    from service.loadtest.search import lowest_missed
    from service.loadtest.summary import is_busy, is_enough

    warnings = []
    if interrupted:
        warnings.append("interrupted: a higher rate may meet the goal")
    if not is_enough(run["requests"], goal.quantile):
        warnings.append(
            f"of {run['requests']} requests the goal's share is all of them: search with a longer --duration"
        )
    border = lowest_missed(steps)
    if border is not None and is_busy(border.measured):
        warnings.append(
            f"{border.rate:.2f} arrivals/s kept the load generator itself busy, which may be why the goal was missed: "
            "more --workers may find a higher rate"
        )
    return warnings


def _search_json(steps: list[Step], runs: list[dict[str, Any]], goal: Goal) -> dict[str, Any]:
    from service.loadtest.search import best
    from service.loadtest.summary import is_enough

    found = best(steps)
    return {
        "goal": str(goal),
        "quantile": goal.quantile,
        "limit_ms": goal.limit_s * 1000,
        "found_rate_per_s": None if found is None else round(found.rate, 3),
        "steps": [
            {
                "rate_per_s": round(step.rate, 3),
                "value_ms": round(step.value_s * 1000, 3) if step.value_s < float("inf") else None,
                "met": step.met,
                "kept_up": step.kept_up,
                "enough": is_enough(run["requests"], goal.quantile),
                "throughput_per_s": run["throughput_per_s"],
                "failed": run["failed"],
            }
            for step, run in zip(steps, runs, strict=True)
        ],
    }


def _run_plan(plan: Plan, workers: int) -> Measured:
    from service.loadtest.display import LiveDisplay
    from service.loadtest.fleet import WorkerLostError, run_plan

    try:
        with LiveDisplay(stderr, plan) as display:
            return run_plan(plan, workers=workers, on_progress=display.update)
    except WorkerLostError as error:
        fail(str(error))


def _give(document: dict[str, Any], report: Path | None, as_json: bool) -> None:
    from service.loadtest.display import print_run, print_search
    from service.loadtest.report import render

    if report is not None:
        _write(report, render(document))
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    if "search" in document:
        print_search(stdout, document["search"])
    print_run(stdout, document["run"])


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        fail(f"{path}: {error.strerror or error}")
    say(f"report: {path}")
