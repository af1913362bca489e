"""`serve run` with the package's configuration file, or with arguments, and a detector that needs no weights."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.support.faulty_server import numbered_png
from tests.support.processes import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("by", ["file", "arguments"])
def test_serve_run_serves(tmp_path: Path, by: str) -> None:
    yaml = pytest.importorskip("yaml")
    pytest.importorskip("ray")
    changed = {"detectors": "tests.support.scale_detectors:load", "num_cpus": 0.5}
    if by == "file":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        config = yaml.safe_load((ROOT / "service" / "scale" / "serve.yaml").read_text())
        config["http_options"]["port"] = port
        config["applications"][0]["args"] |= changed
        told = [str(tmp_path / "serve.yaml")]
        Path(told[0]).write_text(yaml.safe_dump(config))
    else:
        port = 8000  # there is no argument for it
        told = ["service.scale.deployment:detector", *(f"{name}={value}" for name, value in changed.items())]
    log = tmp_path / "log"
    environment = {
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "FAULTY_BATCH_S": "0",
        "SCALE_RAN": str(tmp_path),
        "FRCNN_API_KEYS": "a-key-that-replicas-read-by-themselves",
    }
    command = [str(Path(sys.executable).with_name("serve")), "run", *told]
    # What a shell runs in the background ignores SIGINT, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | environment)
    signal.signal(signal.SIGINT, before)
    try:
        url, give_up = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while not _ready(url):
            assert child.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < give_up, log.read_text()[-3000:]
            time.sleep(0.5)
        with httpx.Client(base_url=url, timeout=30) as client:
            assert client.post("/detect", content=numbered_png(9)).status_code == 401
            key = {"Authorization": f"Bearer {environment['FRCNN_API_KEYS']}"}
            found = client.post("/detect", content=numbered_png(9), headers=key)
        assert found.json()["boxes"][0][0] == 9
    finally:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(60)
        finally:
            child.kill()
            child.wait()
    assert environment["FRCNN_API_KEYS"] not in log.read_text()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
