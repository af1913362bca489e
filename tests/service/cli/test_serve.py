from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.commands import invoke

# Without measuring what is fastest, which takes minutes where others use the processor.
CHOSEN = ("--precision", "fp32", "--backend", "torch", "--max-batch-size", "1")


def test_every_setting_is_an_option() -> None:
    text = invoke("serve", "--help").stdout
    options = set(re.findall(r"--[a-z-]+", text))
    assert options >= {
        "--host", "--port", "--weights", "--device", "--precision", "--max-batch-size", "--max-queue-delay-ms",
        "--queue-capacity", "--request-timeout-ms", "--max-body-bytes", "--decode-threads", "--log-level",
        "--log-format", "--no-access-log", "--api-keys-file", "--cors-origins", "--otlp-endpoint",
    }  # fmt: skip
    assert "--api-keys" not in options  # everybody on the machine sees the arguments of a process


@pytest.mark.parametrize("wrong", [("--port", "99999"), ("--precision", "fp1"), ("--max-batch-size", "many")])
def test_serving_with_a_wrong_setting_is_wrong_usage(wrong: tuple[str, str]) -> None:
    result = invoke("serve", *wrong)
    assert result.exit_code == 2
    assert wrong[0] in result.stderr


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "service", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"FRCNN_DEVICE": "cpu"} | environment,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def address(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    for line in child.stdout:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return found[0]
    raise AssertionError("the server never said where it listens")


def test_serve_as_a_process_ends_cleanly_on_sigterm() -> None:
    with process("serve", "--port", "0", "--weights", "random", *CHOSEN) as child:
        url = address(child)
        give_up = time.monotonic() + 300
        while httpx.get(f"{url}/healthz", timeout=30).status_code != 200:
            assert time.monotonic() < give_up
            time.sleep(0.1)
        health = httpx.get(f"{url}/healthz", timeout=30).json()
        assert health["model"] | {"version": ""} == {
            "name": "fasterrcnn_resnet50_fpn",
            "weights": "random",
            "version": "",
        }
        assert re.fullmatch("[0-9a-f]{12}", health["model"]["version"])
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0


def test_serve_without_its_weights_ends_with_a_reason() -> None:
    with process("serve", "--port", "0", FRCNN_WEIGHTS="/nowhere/w.pth") as child:
        output, _ = child.communicate(timeout=120)
        assert child.returncode == 1
        assert "no such file of weights: /nowhere/w.pth" in output.splitlines()[-1]


def test_serve_where_no_temporary_file_can_be_written_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError

    monkeypatch.setattr("tempfile.gettempdir", none)
    result = invoke("serve", "--weights", "random")
    assert result.exit_code == 1
    assert "docker run needs --tmpfs /tmp" in result.stderr


def test_serve_on_a_port_that_is_taken_ends_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with process("serve", "--port", str(port), "--weights", "random") as child:
            output, _ = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "Address already in use. Choose another: --port" in output


def test_serve_with_an_unusable_file_of_keys_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("two words")
    with process("serve", "--port", "0", "--api-keys-file", str(tmp_path / "keys")) as child:
        output, _ = child.communicate(timeout=60)
    assert child.returncode == 2
    assert "an API key in" in output
    assert "two words" not in output


def test_serve_asks_for_keys_and_logs_json(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("key-of-the-file-0123456789\n")
    arguments = ("--port", "0", "--weights", "random", "--log-format", "json", "--api-keys-file", str(keys))
    with process("serve", *arguments, *CHOSEN, FRCNN_API_KEYS="a,b", FRCNN_API_KEY="misspelt") as child:
        assert child.stdout is not None
        url, lines = "", []
        for text in child.stdout:
            lines.append(json.loads(text))
            if found := re.search(r"http://127\.0\.0\.1:\d+", text):
                url = found[0]
            if lines[-1]["message"].startswith("ready: "):
                break
        statuses = [
            httpx.get(f"{url}/docs", headers={"X-API-Key": key}, timeout=30).status_code
            for key in ("a", "b", "key-of-the-file-0123456789", "misspelt")
        ]
        assert statuses == [200, 200, 200, 401]
        child.send_signal(signal.SIGTERM)
        lines += [json.loads(line) for line in child.communicate(timeout=60)[0].splitlines()]
    messages = [line["message"] for line in lines]
    assert "FRCNN_API_KEY is set, and is no setting: is it misspelt?" in messages
    assert "API keys are asked for: 3 are accepted" in messages
    assert [line["status"] for line in lines if line["logger"] == "service.access"] == statuses
    assert "key-of-the-file" not in str(lines)


def test_sigterm_ends_a_service_that_is_still_loading() -> None:
    script = (
        "import time, service.devices.loading as d\n"
        "d.load_detectors = lambda _: time.sleep(100)\n"
        "from service.cli.app import main; main()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, "serve", "--port", "0", "--weights", "random"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        url = address(child)
        assert httpx.get(f"{url}/healthz", timeout=30).json()["status"] == "loading"
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.communicate()
