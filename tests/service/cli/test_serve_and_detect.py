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
from typing import Any

import httpx
import pytest
from PIL import Image
from typer.testing import CliRunner

from service.cli.app import app
from service.devices import detector
from service.settings import Settings
from tests.support.fakes import FakeDetector

runner = CliRunner()


def invoke(*arguments: object) -> Any:
    return runner.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector, "load_detectors", lambda _: [FakeDetector()])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, red in (("b.png", 7), ("a.jpg", 9), ("below/c.png", 8)):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 32), (red, 0, 0)).save(path)
    (tmp_path / "in" / "notes.txt").write_text("not looked at")
    return tmp_path / "in"


@pytest.mark.usefixtures("faked")
class TestDetect:
    def test_text(self, folder: Path) -> None:
        result = invoke("detect", folder / "b.png", "--weights", "random", "--score-threshold", "0.2")
        assert result.exit_code == 0
        assert result.stdout == (
            f"{folder / 'b.png'}: 2 detections\n"
            "  person 0.90  x 7 to 11, y 1 to 9\n"
            "  dog 0.30     x 2 to 12, y 3 to 23\n"
        )

    def test_json_of_a_folder_in_order(self, folder: Path) -> None:
        result = invoke("detect", folder, "--json")
        documents = json.loads(result.stdout)
        assert [Path(d["file"]).name for d in documents] == ["a.jpg", "b.png", "c.png"]
        assert documents[1]["boxes"] == [[7, 1, 11, 9]]  # the default threshold is 0.5
        assert documents[1]["label_names"] == ["person"]
        assert documents[1]["image"] == {"width": 40, "height": 32}

    def test_drawn_copies_keep_the_tree_and_overwrite_nothing(self, folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        for _ in range(2):
            assert invoke("detect", folder, "--draw", out).exit_code == 0
        assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == [
            "a-2.jpg", "a.jpg", "b-2.png", "b.png", "below/c-2.png", "below/c.png"
        ]  # fmt: skip
        with Image.open(out / "below" / "c.png") as drawn:
            assert drawn.size == (40, 32)

    def test_a_broken_image_is_told_and_the_others_are_done(self, folder: Path) -> None:
        (folder / "a.jpg").write_bytes(b"broken")
        result = invoke("detect", folder, "--json")
        assert result.exit_code == 1
        documents = json.loads(result.stdout)
        assert "not an image" in documents[0]["error"]
        assert len(documents[1]["boxes"]) == len(documents[2]["boxes"]) == 1
        assert "1 of 3 images" in result.stderr

    def test_wrong_usage(self, folder: Path) -> None:
        assert invoke("detect").exit_code == 2
        assert invoke("detect", folder / "missing.jpg").exit_code == 2
        assert invoke("detect", folder, "--score-threshold", "2").exit_code == 2
        unknown = invoke("detect", folder, "--labels", "unicorn")
        assert unknown.exit_code == 1
        assert "unicorn" in unknown.stderr


def test_what_cannot_be_is_told_before_torch_is_imported(folder: Path) -> None:
    for arguments, message in {
        ("detect", "missing.jpg"): "no such file or folder: missing.jpg",
        ("detect", str(folder), "--weights", "COCO"): "no such file of weights: COCO",
        ("detect", str(folder), "--weights", "bundled", "--draw", str(folder / "notes.txt")): "cannot write to",
        ("serve", "--weights", "w.pth"): "no such file of weights: w.pth",
        ("evaluate", "--weights", "bundled", "--data", "nowhere"): "no such data: nowhere",
        ("train", "--data", "nowhere", "--output", "out"): "no such data: nowhere",
        ("bench", "model", "--size", "480"): "'480' is not numbers with 'x' between",
        ("weights", "pack", "w.pth", "w.frcnn"): "no such file of weights: w.pth",
    }.items():
        script = "import sys; sys.modules['torch'] = None\nfrom service.cli.app import main; main()"
        child = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
        assert child.returncode in {1, 2}
        assert message in child.stderr
        assert "Traceback" not in child.stderr


def test_detecting_measures_no_speed_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(settings: Settings) -> list[FakeDetector]:
        asked.append(settings)
        return [FakeDetector()]

    monkeypatch.setattr(detector, "load_detectors", load)
    assert invoke("detect", folder).exit_code == 0
    assert (asked[0].precision, asked[0].max_batch_size) == ("fp32", 1)


def test_version_and_help() -> None:
    assert re.fullmatch(r"frcnn \d+\.\d+\.\d+\n", invoke("--version").stdout)
    commands = [[name] for name in ("serve", "detect", "train", "evaluate", "sample", "loadtest")]
    weights = [["weights", name] for name in ("list", "fetch", "inspect", "pack")]
    for command in [*commands, *weights, ["bench", "model"], ["bench", "service"]]:
        text = invoke(*command, "-h").stdout
        assert text.startswith("Usage: ")
        assert text.count("Example: frcnn") == 1, command
        assert not re.findall(r"range>|\{[a-z_]+\}", text), command


def test_weights_that_are_missing_are_said_so(folder: Path) -> None:
    result = invoke("detect", folder, "--weights", folder / "none.pth")
    assert result.exit_code == 1
    assert "no such file of weights" in result.stderr


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


def test_weights_list_and_inspect() -> None:
    listed = invoke("weights", "list").stdout
    assert "COCO_V1   of fasterrcnn_resnet50_fpn, " in listed
    assert "COCO_V1   of fasterrcnn_resnet50_fpn_v2, " in listed
    assert "/fasterrcnn_resnet50_fpn_v2_coco-" in listed
    result = invoke("weights", "inspect", "random", "--model", "fasterrcnn_resnet50_fpn_v2")
    assert result.exit_code == 0
    assert "model       fasterrcnn_resnet50_fpn_v2" in result.stdout
    assert "fits        yes" in result.stdout
    assert "80: person, bicycle" in result.stdout


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
    with process("serve", "--port", "0", "--weights", "random") as child:
        url = address(child)
        give_up = time.monotonic() + 120
        while httpx.get(f"{url}/healthz").status_code != 200:
            assert time.monotonic() < give_up
            time.sleep(0.1)
        health = httpx.get(f"{url}/healthz").json()
        assert health["model"] == {"name": "fasterrcnn_resnet50_fpn", "weights": "random"}
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
    with process("serve", *arguments, FRCNN_API_KEYS="a,b", FRCNN_API_KEY="misspelt") as child:
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
        "import time, service.devices.detector as d\n"
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
