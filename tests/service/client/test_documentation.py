"""The examples in docs/clients.md, and those of docs/deployment.md, run as they stand."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.client import DetectionClient
from service.settings import Settings
from tests.support.fakes import FakeDetector, red_png
from tests.support.servers import live

DOCS = Path(__file__).parents[3] / "docs"
PAGE = DOCS / "clients.md"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of what supervision imports
def test_each_example(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("supervision")
    pytest.importorskip("pandas")
    pytest.importorskip("av", reason="comes with supervision")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for name in ("photo.jpg", "aerial.jpg", "a.jpg", "b.jpg", "pictures/1.jpg"):
        (tmp_path / name).write_bytes(red_png(7))
    (tmp_path / "pictures" / "2.jpg").write_bytes(b"broken")
    write_video(tmp_path / "street.mp4")
    examples = blocks("python")
    with live(FakeDetector()) as url:
        for example in examples:
            exec(compile(example.replace("http://127.0.0.1:8000", url), str(PAGE), "exec"), {})
    shown = capsys.readouterr().out
    assert len(examples) == 7
    assert "dog 0.3" not in shown  # below the first example's threshold
    assert "person 0.9 (7.0, 1.0, 11.0, 9.0)" in shown
    assert "pictures/1.jpg 2\npictures/2.jpg failed: 400 broken-image:" in shown
    assert "frame 0 ('person',)\nframe 1 ('person',)\nframe 2 ('person',)" in shown


def write_video(path: Path) -> None:
    """Three frames."""
    import av

    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 9, np.uint8), format="rgb24")
            video.mux(stream.encode(frame))
        video.mux(stream.encode())


def blocks(language: str, page: Path = PAGE) -> list[str]:
    """The examples of a language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_javascript_example(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        playwright = pytest.importorskip("playwright", reason="needs Node, or Playwright, which has one")
        node = str(Path(playwright.__file__).parent / "driver" / "node")
    (tmp_path / "photo.jpg").write_bytes(red_png(7))
    [example] = blocks("js")
    with live(FakeDetector()) as url:
        code = example.replace("http://127.0.0.1:8000", url)
        ran = subprocess.run(
            [node, "--input-type=module", "-e", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "person 0.9 [ 7, 1, 11, 9 ]\n"


def test_an_answer_in_torchserves_form() -> None:
    [example] = blocks("python", DOCS / "deployment.md")
    scope: dict[str, Any] = {}
    exec(compile(example, "deployment.md", "exec"), scope)
    result = {"boxes": [[1, 2, 3, 4]], "labels": [1], "scores": [0.9], "label_names": ["person"]}
    assert scope["as_torchserve"](result) == [{"person": [1, 2, 3, 4], "score": 0.9}]


def test_the_unit_of_systemd(tmp_path: Path) -> None:
    [unit] = blocks("ini", DOCS / "deployment.md")
    options = dict(re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE))
    waits = (
        float(options["ExecStart"].split("--drain-delay-s ")[1]) + Settings.model_fields["shutdown_timeout_s"].default
    )
    assert float(options["TimeoutStopSec"]) > waits + 5
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs systemd-analyze")
    path = tmp_path / "frcnn.service"
    path.write_text(unit.replace(options["ExecStart"].split()[0], sys.executable))
    found = subprocess.run([analyze, "verify", path], capture_output=True, text=True, timeout=60)
    assert str(path) not in found.stderr, found.stderr
    assert "frcnn.service:" not in found.stderr, found.stderr


def test_the_nginx_example_serves_below_a_path(tmp_path: Path) -> None:
    [location] = blocks("nginx", DOCS / "deployment.md")
    with live(FakeDetector()) as url, nginx(location.replace("http://127.0.0.1:8000", url), tmp_path) as proxy:
        page = f"{proxy}/detector/"
        with DetectionClient(page) as client:
            assert client.detect(red_png(7), score_threshold=0.5).names == ("person",)
        for path in ("", "docs", "nowhere/at/all"):
            shown = httpx.get(page + path, headers={"Accept": "text/html"})
            links = re.findall(r'(?:src|href)="([^"]+)"', shown.text)
            assert links
            for link in links:
                assert httpx.get(shown.url.join(link)).status_code == 200, (path, link)


def listens(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def nginx(location: str, folder: Path) -> Iterator[str]:
    """The address of an nginx with this location."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/bin:/usr/bin")
    if program is None:
        pytest.skip("needs nginx")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    bodies = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    server = f"server {{ listen 127.0.0.1:{port}; {location} }}"
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log stderr; events {{}} http {{ access_log off; {bodies} {server} }}"
    )
    process = subprocess.Popen([program, "-p", folder, "-c", folder / "nginx.conf"])
    try:
        until = time.monotonic() + 20
        while not listens(port):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
