"""Readings of GPUs, by a driver that answers, rejects, or hangs."""

from __future__ import annotations

import asyncio
import re
import threading

import httpx
import pytest
import torch

from service.app import create_app
from service.devices import readings
from service.devices.readings import GPUReadings, gpu_readings
from service.settings import Settings
from tests.support.fakes import FakeDetector, red_png


def reject(_: object) -> float:
    raise RuntimeError("Not Supported")


def test_what_a_gpu_tells_has_units_and_what_it_rejects_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(readings._READERS, "temperature_celsius", lambda _: 61)
    monkeypatch.setattr(torch.cuda, "utilization", lambda _: 87)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda _: 412_500)
    assert gpu_readings("cuda:1") == {"utilization_ratio": 0.87, "power_watts": 412.5, "temperature_celsius": 61.0}
    monkeypatch.setattr(torch.cuda, "utilization", reject)
    assert gpu_readings("cuda:1") == {"power_watts": 412.5, "temperature_celsius": 61.0}


def test_a_cpu_tells_nothing() -> None:
    assert gpu_readings("cpu") == {}


@pytest.mark.anyio
async def test_a_driver_that_hangs_delays_a_scrape_once_and_leaves_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "_PATIENCE_S", 0.05)
    hangs, threads = threading.Event(), []

    def read(device: str) -> dict[str, float]:
        threads.append(threading.get_ident())
        assert hangs.wait(20)
        return {"power_watts": 100.0}

    told = GPUReadings(read)
    for _ in range(3):
        await told.refresh(["cuda:0"])
        assert told.latest == {}
    assert len(threads) == 1
    hangs.set()
    async with asyncio.timeout(20):
        while not told.latest:
            await told.refresh(["cuda:0"])
    assert told.latest == {"cuda:0": {"power_watts": 100.0}}


def test_the_end_does_not_wait_for_a_driver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "_PATIENCE_S", 0.05)
    hangs, ended = threading.Event(), threading.Event()

    def serve() -> None:
        asyncio.run(GPUReadings(lambda _: {"power_watts": float(hangs.wait(60))}).refresh(["cuda:0"]))
        ended.set()

    threading.Thread(target=serve, daemon=True).start()
    try:
        assert ended.wait(20)
    finally:
        hangs.set()


@pytest.mark.anyio
async def test_the_metrics_have_the_readings_and_the_busy_time() -> None:
    detector = FakeDetector(device="xpu:0", seconds=0.02)
    told = {"power_watts": 300.0, "temperature_celsius": 60.0}
    app = create_app(Settings(), load=lambda _: [detector])
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        await app.state.service.until_loaded()
        assert "frcnn_device_power" not in (await client.get("/metrics")).text
        app.state.service.readings = GPUReadings(lambda _: told)
        assert (await client.post("/detect", content=red_png(1))).status_code == 200
        metrics = (await client.get("/metrics")).text
    assert 'frcnn_device_power_watts{device="xpu:0"} 300.0' in metrics
    assert 'frcnn_device_temperature_celsius{device="xpu:0"} 60.0' in metrics
    assert "frcnn_device_utilization_ratio" not in metrics
    busy = re.search(r'^frcnn_device_busy_seconds_total\{device="xpu:0"\} (\S+)$', metrics, re.MULTILINE)
    assert busy is not None
    assert float(busy[1]) >= 0.02
