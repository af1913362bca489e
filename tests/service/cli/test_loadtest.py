"""`frcnn loadtest` as it is typed, against the real service with a detector that needs no model."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import Result

from tests.support import commands
from tests.support.fakes import FakeDetector, red_png
from tests.support.servers import live

FORMS = (["--rate", "40"], ["--concurrency", "3"])


def invoke(*arguments: object) -> Result:
    return commands.invoke("loadtest", *arguments)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for red in (7, 8):
        (folder / f"{red}.png").write_bytes(red_png(red))
    return folder


@pytest.fixture
def url() -> Iterator[str]:
    with live(FakeDetector(seconds=0.005), max_batch_size=4) as address:
        yield address


class Page(HTMLParser):
    """Checks that tags are closed in order, and keeps the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check_page(path: Path) -> Page:
    html = path.read_text()
    assert not re.search(r"(src|href)=|@import|url\(|<script", html)  # nothing from elsewhere
    assert "nan" not in re.sub(r"<style>.*?</style>", "", html)
    return Page(html)


@pytest.mark.parametrize("form", FORMS)
def test_json_report_and_text(url: str, images: Path, tmp_path: Path, form: list[str]) -> None:
    times = ("--duration", 1, "--warmup", 0.2)
    key = ("--api-key", "s3cret")
    result = invoke(url, "--images", images, *form, *times, *key, "--json", "--report", tmp_path / "r.html")
    assert result.exit_code == 0, result.output
    assert "s3cret" not in result.output + (tmp_path / "r.html").read_text()
    document = json.loads(result.stdout)
    run = document["run"]
    assert run["failed"] == 0
    assert run["requests"] >= 3
    assert {"decode", "queue", "inference", "elsewhere"} == set(run["stages_ms"])
    assert run["stages_ms"]["inference"]["min"] >= 5
    assert set(run["batch_sizes"]) <= {"1", "2", "3", "4"}
    assert document["service"]["model"]["weights"] == "fake"
    page = check_page(tmp_path / "r.html")
    assert f"Load test of {url}" in page.text
    assert page.text.count("Latency by percentile") == 1
    shown = invoke(url, "--images", images / "7.png", *form, "--duration", 0.5, "--warmup", 0)
    assert shown.exit_code == 0
    assert "1 image\n" in shown.stdout
    assert "answers/s; of" in shown.stdout
    assert "inference" in shown.stdout


def test_several_processes(url: str, images: Path) -> None:
    result = invoke(url, "--images", images, "--rate", 60, "--duration", 1.5, "--workers", 3, "--json")
    run = json.loads(result.stdout)["run"]
    assert run["plan"]["workers"] == 3
    assert 90 - 4 * 9.5 < run["requests"] < 90 + 4 * 9.5


@pytest.mark.slow
def test_the_rate_within_a_goal_is_found(url: str, images: Path, tmp_path: Path) -> None:
    arguments = ("--slo", "p50=5s", "--rate", 20, "--duration", 1, "--warmup", 0.1, "--max-in-flight", 30)
    result = invoke(url, "--images", images, *arguments, "--report", tmp_path / "s.html", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    search = document["search"]
    assert search["goal"] == "p50 within 5000 ms"
    met = [step["rate_per_s"] for step in search["steps"] if step["met"]]
    assert search["found_rate_per_s"] == max(met) == pytest.approx(document["run"]["plan"]["rate_per_s"], abs=0.01)
    assert "Rates tried" in check_page(tmp_path / "s.html").text


def test_a_goal_that_nothing_meets_is_a_failure(url: str, images: Path) -> None:
    result = invoke(url, "--images", images, "--slo", "p99=1ms", "--duration", 0.5, "--warmup", 0)
    assert result.exit_code == 1
    assert "no rate that was tried met the goal" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["http://127.0.0.1:1"],
        ["http://127.0.0.1:1", "--images", "IMAGES"],
        ["http://127.0.0.1:1", "--images", "IMAGES", "--rate", 1, "--concurrency", 1],
        ["http://127.0.0.1:1", "--images", "IMAGES", "--slo", "p99=1s", "--concurrency", 1],
        ["http://127.0.0.1:1", "--images", "IMAGES", "--slo", "fast"],
        ["127.0.0.1:1", "--images", "IMAGES", "--rate", 1],
        ["http://127.0.0.1:1", "--images", "/nowhere", "--rate", 1],
    ],
)
def test_wrong_usage(images: Path, arguments: list[object]) -> None:
    result = invoke(*[images if argument == "IMAGES" else argument for argument in arguments])
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr


def test_ctrl_c_gives_the_figures_until_then(images: Path) -> None:
    detector = FakeDetector(seconds=0.005)
    arguments = ["--images", str(images), "--rate", "40", "--duration", "600", "--warmup", "0", "--json"]
    with live(detector, max_batch_size=4) as url:
        command = [sys.executable, "-m", "service", "loadtest", url, *arguments]
        test = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            give_up = time.monotonic() + 300
            while len(detector.batches) < 20:
                assert time.monotonic() < give_up
                time.sleep(0.05)
            test.send_signal(signal.SIGINT)
            shown, told = test.communicate(timeout=60)
        finally:
            test.kill()
    assert test.returncode == 130
    assert told == "frcnn: interrupted\n"
    run = json.loads(shown)["run"]
    assert run["succeeded"] >= 10
    assert 0 < run["plan"]["duration_s"] < 200
    assert run["throughput_per_s"] > 0
    assert any("interrupted" in warning for warning in run["warnings"])


@pytest.fixture
def _sigint_arrives() -> Iterator[None]:
    """What a shell runs in the background ignores SIGINT, and so would its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_sigint_arrives")
def test_ctrl_c_while_it_starts_is_no_trace(images: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the question of its health and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "service", "loadtest", url, "--images", str(images), "--rate", "1"]
        test = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            silent.settimeout(120)
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(1), "now it waits for the answer"
                test.send_signal(signal.SIGINT)
                shown, _ = test.communicate(timeout=60)
        finally:
            test.kill()
    assert (test.returncode, shown) == (130, "frcnn: interrupted\n")


def test_no_service(images: Path) -> None:
    result = invoke("http://127.0.0.1:1", "--images", images, "--rate", 1)
    assert result.exit_code == 1
    assert "no service answers" in result.stderr


def test_when_every_request_fails_it_is_a_failure(url: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"broken")
    result = invoke(url, "--images", tmp_path, "--rate", 40, "--duration", 0.5, "--warmup", 0)
    assert result.exit_code == 1
    assert "x 400 broken-image" in result.stdout


def test_a_report_that_could_not_be_written_is_told_before_the_test(tmp_path: Path) -> None:
    report = tmp_path / "no" / "r.html"
    done = invoke("http://127.0.0.1:9", "--images", tmp_path, "--rate", "1", "--report", report)
    assert done.exit_code == 2
    assert "there is no such folder" in done.output
