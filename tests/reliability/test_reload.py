"""New weights under load: every answer is of one version, none fails, and none waits for long."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.build import random_checkpoint
from model.weights.checkpoints import save_checkpoint
from tests.support import calls
from tests.support.calls import record
from tests.support.faulty_server import faulty, numbered_png

pytestmark = pytest.mark.reliability

CORES = len(os.sched_getaffinity(0))
# Requests a second. The loader takes a core. At 200 the callers and the service take another: of two, none is to spare.
RATE = 200 if CORES > 2 else 100
RELOADS = 5
LONGEST_STALL_S = 0.1
QUIET_S = 10


def percentile(seconds: list[float], share: float) -> float:
    return sorted(seconds)[int(share * (len(seconds) - 1))]


def test_reloads_under_load(tmp_path: Path) -> None:
    """While a detector of full size is built beside the one that serves, five times."""
    weights = tmp_path / "weights"
    weights.write_text("a")
    full_size, untrained = tmp_path / "full_size.safetensors", random_checkpoint()
    save_checkpoint(full_size, untrained.state_dict, untrained.info)
    names_of: dict[str, set[str]] = {}
    answers: list[tuple[bool, float]] = []  # whether a reload was going on, and seconds
    reloading = False

    async def ask(port: int, number: int) -> None:
        during = reloading
        reply = await calls.call(port, calls.post(numbered_png(number)))
        assert reply.status == 200, reply
        assert reply.number == number
        answer = json.loads(reply.body)
        names_of.setdefault(answer["model"]["version"], set()).update(answer["label_names"])
        answers.append((during or reloading, reply.seconds))

    async def load(port: int, ended: asyncio.Event) -> None:
        started, number = time.perf_counter(), 0
        async with asyncio.TaskGroup() as group:
            while not ended.is_set():
                number += 1
                group.create_task(ask(port, number % 60_000))
                await asyncio.sleep(max(0, started + number / RATE - time.perf_counter()))

    async def run(server: Any) -> None:
        nonlocal reloading
        ended = asyncio.Event()
        calling = asyncio.create_task(load(server.port, ended))
        await asyncio.sleep(QUIET_S)
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as admin:
            for turn in range(RELOADS):
                weights.write_text("ba"[turn % 2])
                reloading = True
                answer = await admin.post("/-/reload")
                reloading = False
                assert answer.status_code == 200, answer.text
                await asyncio.sleep(QUIET_S / RELOADS)
        ended.set()
        await calling

    with faulty(build=full_size, weights=weights, enable_reload=True, max_batch_size=16, access_log=False) as server:
        asyncio.run(run(server))
        assert server.health() == "ok"
    assert len(names_of) == 2
    assert sorted(names_of.values(), key=sorted) == [{"a"}, {"b"}]
    quiet, busy = ([seconds for during, seconds in answers if during is wanted] for wanted in (False, True))
    before, during = percentile(quiet, 0.99), percentile(busy, 0.99)
    record(
        f"reload x{RELOADS} at {RATE}/s: {len(quiet)} answers without, {len(busy)} during a reload, none failed; "
        f"p50 {percentile(quiet, 0.5) * 1e3:.1f} -> {percentile(busy, 0.5) * 1e3:.1f} ms, "
        f"p99 {before * 1e3:.1f} -> {during * 1e3:.1f} ms"
    )
    if CORES > 2:
        assert during <= 2 * before
    else:  # the callers, the service and the loader keep each other waiting
        assert during <= before + LONGEST_STALL_S
