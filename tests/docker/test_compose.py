"""`docker compose up`: one replica, several behind the balancer, and how they end under load."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.support.stacks import Callers, stack

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("image")]

CALLERS = 4


def ready(url: str) -> bool:
    """Whether it says so; what does not answer is not."""
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_it_serves_and_stops_under_load_without_losing_an_answer(picture: bytes) -> None:
    with stack("one") as one:
        url = f"http://127.0.0.1:{one.port}"
        assert httpx.get(f"{url}/healthz").json()["status"] == "ok"
        reply = httpx.post(f"{url}/detect", files={"file": ("a.jpg", picture)}, timeout=120)
        assert reply.status_code == 200
        with Callers(url, picture, 2 * CALLERS) as load:
            load.until_answered(3 * CALLERS)
            stopping = threading.Thread(target=one, args=("stop", "detector"))
            stopping.start()
            # What a load balancer does: it sends no more once /readyz says no.
            give_up = time.monotonic() + 60
            while ready(url):
                assert time.monotonic() < give_up, "it was asked to stop, and says that it is ready"
                time.sleep(0.1)
            load.leave()
            stopping.join()
        print(f"RECORD stopped under load: {dict(load.outcomes)}")
        assert set(load.outcomes) == {f"{len(reply.json()['boxes'])} boxes"}
        assert one.state("detector", "ExitCode") == "0"


def test_replicas_come_and_go_and_nobody_notices(picture: bytes) -> None:
    with stack("scaled", profile="scaled") as scaled:
        url = f"http://127.0.0.1:{scaled.scaled_port}"
        assert httpx.get(f"{url}/metrics").status_code == 404
        with Callers(url, picture, CALLERS) as load:
            load.until_answered(2 * CALLERS)
            scaled("stop", "replica")
            assert scaled.state("replica", "ExitCode") == "0"
            load.until_answered(2 * CALLERS)
            scaled("start", "replica")
            load.until_answered(4 * CALLERS)  # while it loads, it rejects: those go to the other
        print(f"RECORD a replica stopped and started under load: {dict(load.outcomes)}")
        assert len(load.outcomes) == 1
        assert next(iter(load.outcomes)).endswith("boxes")
        answered = [log.count("POST /detect 200") for log in (scaled("logs", name) for name in ("detector", "replica"))]
        assert min(answered) > 0
        assert sum(answered) == load.outcomes.total()


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("correct-horse-battery\nanother-key-of-that-kind\n")
    keys.chmod(0o644)
    with stack("keys", "docker/compose.keys.yml", FRCNN_API_KEYS_FILE=str(keys)) as keyed:
        url = f"http://127.0.0.1:{keyed.port}"
        assert httpx.get(f"{url}/labels").status_code == 401
        assert httpx.get(f"{url}/labels", headers={"X-API-Key": "another-key-of-that-kind"}).status_code == 200
        keyed("exec", "detector", "test", "-r", "/run/secrets/frcnn_api_keys")


def test_the_load_tester_finds_the_service() -> None:
    with stack("load", LOADTEST_OPTIONS="--concurrency 2 --duration 10 --warmup 0") as loaded:
        told = loaded("run", "--rm", "loadtest")
        print(f"RECORD {told}")
        assert "answers/s" in told
