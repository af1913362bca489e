"""The server as a process: how it ends, and how it outlives its devices."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from service.devices.detector import Detector
from service.server import yielding
from service.settings import Settings
from tests.support.faulty_server import faulty, numbered_png

HANGS = 3


def detect(server: Any, body: bytes, **headers: str) -> httpx.Response:
    return httpx.post(f"{server.url}/detect", content=body, headers=headers, timeout=30)


def test_sigterm_flips_readiness_first_then_rejects_and_finishes() -> None:
    with faulty(batch_s=1.0, drain_delay_s=3) as server, ThreadPoolExecutor(4) as callers:
        accepted = [callers.submit(detect, server, numbered_png(1))]
        server.until(lambda: server.ran() == [[1]])
        server.child.send_signal(signal.SIGTERM)
        server.until(lambda: httpx.get(f"{server.url}/readyz", timeout=30).status_code == 503)
        assert httpx.get(f"{server.url}/healthz", timeout=30).json()["status"] == "draining"
        late = detect(server, numbered_png(2))  # a load balancer that has not looked yet
        assert late.status_code == 200
        assert late.headers["connection"] == "close"
        server.until(lambda: not listens(server.port), 10)
        assert accepted[0].result().json()["boxes"][0][0] == 1
        assert server.child.wait(10) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own elsewhere")
def test_what_callers_send_leaves_the_cores_to_detection() -> None:
    with faulty() as server:
        assert detect(server, numbered_png(1)).status_code == 200
        threads = [int(folder.name) for folder in Path(f"/proc/{server.child.pid}/task").iterdir()]
        found = [os.getpriority(os.PRIO_PROCESS, thread) for thread in threads]
        usual = os.getpriority(os.PRIO_PROCESS, 0)
        low = min(usual + 10, 19)
        assert os.getpriority(os.PRIO_PROCESS, server.child.pid) == low  # of its main thread
        assert found.count(low) >= 2  # it decodes as well
        assert set(found) == {low, usual}


@pytest.mark.parametrize(("devices", "yields"), [(["cpu"], 1), (["cuda:0"], 0), (["cpu", "cuda:0"], 0)])
def test_nothing_yields_to_a_gpu(devices: list[str], yields: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr("service.server._yield_to_detection", lambda: calls.append(None))
    detectors = [cast(Detector, SimpleNamespace(device=device)) for device in devices]
    assert yielding(lambda _: detectors)(Settings()) == detectors
    assert len(calls) == yields


def test_while_it_loads_there_is_nothing_to_wait_for_and_nothing_is_wrong() -> None:
    with faulty(load_s=600) as server:
        server.child.send_signal(signal.SIGTERM)
        assert server.child.wait(20) == 0
        log = server.log.read_text()
        assert "INFO:service.server:ended before the model was loaded" in log
        assert "ERROR" not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_while_int8_is_calibrated_the_end_is_as_ever(number: signal.Signals) -> None:
    with faulty(precision="int8", batch_s=0.5) as server, ThreadPoolExecutor(1) as callers:
        assert "int8 is being calibrated" in httpx.get(f"{server.url}/healthz", timeout=30).json()["detail"]
        accepted = callers.submit(detect, server, numbered_png(1))
        server.until(lambda: server.ran() == [[1]])
        server.child.send_signal(number)
        assert accepted.result().json()["boxes"][0][0] == 1
        assert server.child.wait(20) == 0
        log = server.log.read_text()
        assert "INFO:service.server:ended before another model was ready" in log
        assert "ERROR" not in log


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionError:
        return False
    return True


def test_sighup_reads_the_weights_again_and_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_text("first")
    with faulty(weights=weights) as server:
        first = detect(server, numbered_png(1)).json()
        assert first["label_names"] == ["first"]
        weights.write_text("second")
        server.child.send_signal(signal.SIGHUP)
        server.until(
            lambda: httpx.get(f"{server.url}/labels", timeout=30).json()["labels"] == [{"id": 1, "name": "second"}]
        )
        second = detect(server, numbered_png(1)).json()
        assert second["label_names"] == ["second"]
        assert second["model"]["version"] != first["model"]["version"]
        weights.unlink()
        server.child.send_signal(signal.SIGHUP)
        server.until(lambda: "the weights are not replaced: no such file of weights: weights" in server.log.read_text())
        assert detect(server, numbered_png(1)).json() == second
        assert httpx.get(f"{server.url}/healthz", timeout=30).json()["status"] == "ok"
        server.child.send_signal(signal.SIGTERM)
        assert server.child.wait(20) == 0


def test_a_second_signal_ends_it_at_once() -> None:
    with faulty(batch_s=60) as server, ThreadPoolExecutor(1) as callers:
        waiting = callers.submit(detect, server, numbered_png(1))
        server.until(lambda: server.ran() == [[1]])
        server.child.send_signal(signal.SIGTERM)
        server.until(lambda: not listens(server.port))
        started = time.monotonic()
        server.child.send_signal(signal.SIGTERM)
        assert server.child.wait(10) == 128 + signal.SIGTERM
        assert time.monotonic() - started < 5
        with pytest.raises(httpx.TransportError):
            waiting.result()


def test_it_ends_within_a_bound_though_a_device_hangs() -> None:
    with faulty(shutdown_timeout_s=1) as server, ThreadPoolExecutor(1) as callers:
        waiting = callers.submit(detect, server, numbered_png(1, HANGS))
        server.until(lambda: server.ran() == [[1]])
        server.child.send_signal(signal.SIGTERM)
        assert server.child.wait(20) == 0
        assert waiting.exception() or waiting.result().status_code >= 500


def test_it_ends_though_a_picture_is_never_decoded() -> None:
    with faulty(shutdown_timeout_s=6, slow_px=48) as server, ThreadPoolExecutor(1) as callers:
        waiting = callers.submit(detect, server, numbered_png(1, size=48))
        server.until(lambda: httpx.get(f"{server.url}/healthz", timeout=30).json()["images_in_flight"] == 1)
        server.child.send_signal(signal.SIGTERM)
        assert server.child.wait(20) == 0
        assert waiting.exception() or waiting.result().status_code >= 500
        assert "ERROR:service.server:ended with a thread at work" in server.log.read_text()


def test_a_device_that_hangs_while_idle_or_not_ends_the_process_if_so_set() -> None:
    with faulty(on_failure="exit", hang_timeout_s=0.5) as server:
        answer = detect(server, numbered_png(1, HANGS))
        assert answer.status_code == 503
        assert server.child.wait(20) == 1
        assert "has not answered for 0.5 s" in server.log.read_text()


def test_by_default_a_device_that_hangs_is_loaded_again() -> None:
    with faulty(hang_timeout_s=0.5) as server:
        assert detect(server, numbered_png(1, HANGS)).status_code == 503
        server.until_ok()
        assert detect(server, numbered_png(2)).json()["boxes"][0][0] == 2
        server.child.send_signal(signal.SIGTERM)
        assert server.child.wait(20) == 0  # though a thread still hangs
