"""Fetching, against a real server on this machine."""

from __future__ import annotations

import errno
import hashlib
import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from model.weights.download import WeightsUnavailableError, cached_path, fetch

CONTENT = bytes(range(256)) * 2000
DIGITS = hashlib.sha256(CONTENT).hexdigest()[:8]
NAME = f"detector-{DIGITS}.pth"


class Server(http.server.ThreadingHTTPServer):
    """Serves one file in the way that a test asks for, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/files/{NAME}"
        self.content, self.status, self.resumes = CONTENT, 200, True
        self.breaks_off_at: int | None = None
        self.drip_s = 0.0
        self.over = threading.Event()
        self.asked: list[str | None] = []
        self.encodings: list[str | None] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        server.encodings.append(self.headers.get("Accept-Encoding"))
        if server.status != 200:
            self.send_error(server.status)
            return
        content, start = server.content, 0
        if wanted and server.resumes:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        try:
            if server.drip_s:
                for at in range(start, len(content), 100):
                    self.wfile.write(content[at : at + 100])
                    if server.over.wait(server.drip_s):
                        return
            else:
                self.wfile.write(content[start : server.breaks_off_at])
        except ConnectionError:
            pass

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    before = torch.hub._hub_dir
    torch.hub.set_dir(str(tmp_path / "hub"))
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()
    torch.hub._hub_dir = before


def leftovers(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir() if not file.name.endswith(".lock")}


@pytest.mark.parametrize("progress", [True, False])
def test_fetches_once(server: Server, progress: bool, capsys: pytest.CaptureFixture[str]) -> None:
    path = fetch(server.url, progress=progress)
    assert path == cached_path(server.url)
    assert path.read_bytes() == CONTENT
    assert fetch(server.url) == path
    assert server.asked == [None]
    assert server.encodings == ["identity"]  # compressed on the way, the bytes would have another hash
    assert leftovers(path) == {NAME}
    shown = capsys.readouterr()
    assert shown.out == ""  # which belongs to the caller: `frcnn detect --json`
    assert shown.err == (f"{NAME}: 1 of 1 MB\n" if progress else "")


def test_a_file_that_torchvision_fetched_is_found(server: Server) -> None:
    path = cached_path(server.url)
    assert path.parent.name == "checkpoints"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"whatever")
    assert fetch(server.url) == path
    assert server.asked == []


@pytest.mark.parametrize("resumes", [True, False], ids=["server resumes", "server starts again"])
def test_a_download_that_broke_off_is_taken_up(server: Server, resumes: bool) -> None:
    server.resumes = resumes
    server.breaks_off_at = 400_000
    with pytest.raises(WeightsUnavailableError):
        fetch(server.url, progress=False)
    path = cached_path(server.url)
    assert leftovers(path) == {f"{NAME}.partial"}
    have = (path.parent / f"{NAME}.partial").stat().st_size
    assert have > 0
    server.breaks_off_at = None
    assert fetch(server.url, progress=False).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={have}-"]
    assert leftovers(path) == {NAME}


def test_a_complete_partial_file_only_needs_its_name(server: Server) -> None:
    path = cached_path(server.url)
    path.parent.mkdir(parents=True)
    (path.parent / f"{NAME}.partial").write_bytes(CONTENT)
    assert fetch(server.url, progress=False).read_bytes() == CONTENT
    assert leftovers(path) == {NAME}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_download_that_cannot_get_its_name_is_kept(
    server: Server, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if step == "fsync" else Path, step, fail)
        with pytest.raises(WeightsUnavailableError, match="No space left"):
            fetch(server.url, progress=False)
    path = cached_path(server.url)
    assert leftovers(path) == {f"{NAME}.partial"}
    assert fetch(server.url, progress=False).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={len(CONTENT)}-"]


def test_rubbish_from_an_earlier_try_is_thrown_away(server: Server) -> None:
    path = cached_path(server.url)
    path.parent.mkdir(parents=True)
    (path.parent / f"{NAME}.partial").write_bytes(b"rubbish")
    assert fetch(server.url, progress=False).read_bytes() == CONTENT
    assert server.asked == ["bytes=7-", None]


@pytest.mark.parametrize("partial", [b"", b"rubbish"], ids=["fresh", "resumed"])
def test_bytes_without_the_hash_never_get_the_name(server: Server, partial: bytes) -> None:
    server.content = b"not the weights"
    path = cached_path(server.url)
    if partial:
        path.parent.mkdir(parents=True)
        (path.parent / f"{NAME}.partial").write_bytes(partial)
    with pytest.raises(WeightsUnavailableError, match=rf"SHA-256 \w{{8}}\.\.\., not {DIGITS}"):
        fetch(server.url, progress=False)
    assert server.asked == (["bytes=7-", None] if partial else [None])
    assert leftovers(path) == set()


@pytest.mark.parametrize("status", [404, 403, 500, 503])
def test_the_servers_rejection_is_told(server: Server, status: int) -> None:
    server.status = status
    with pytest.raises(WeightsUnavailableError, match=str(status)):
        fetch(server.url, progress=False)
    assert not cached_path(server.url).exists()


def test_without_a_network_the_ways_forward_are_told(server: Server) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody else takes the port, nobody answers
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/{NAME}"
        with pytest.raises(WeightsUnavailableError) as caught:
            fetch(url, progress=False)
    message = str(caught.value)
    for part in (url, str(cached_path(url)), "HTTPS_PROXY", "--weights PATH", "--weights bundled"):
        assert part in message


@pytest.mark.parametrize("drip_s", [0.02, 30.0], ids=["bytes trickle", "bytes stop"])
def test_timeout_is_the_time_in_all(server: Server, drip_s: float) -> None:
    server.drip_s = drip_s
    started = time.monotonic()
    with pytest.raises(WeightsUnavailableError):
        fetch(server.url, progress=False, timeout_s=0.5)
    assert 0.4 < time.monotonic() - started < 5
    path = cached_path(server.url)
    assert leftovers(path) == {f"{NAME}.partial"}
    # What came is kept, and the next try goes on from there.
    assert (path.parent / f"{NAME}.partial").stat().st_size > 0
    server.drip_s = 0.0
    assert fetch(server.url, progress=False).read_bytes() == CONTENT
    assert server.asked[1] is not None


def test_all_who_want_a_file_at_once_fetch_it_once(server: Server) -> None:
    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(lambda _: fetch(server.url, progress=False), range(6)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert server.asked == [None]


def test_a_folder_that_cannot_be_made_is_told(server: Server, tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("a file, where the cache should be")
    with pytest.raises(WeightsUnavailableError, match="Ways forward"):
        fetch(server.url, progress=False)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_cache_that_cannot_be_written_is_not_the_networks_fault(
    server: Server, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def reject(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", reject)
    with pytest.raises(WeightsUnavailableError, match=r"let user \d+ write to .*, or set TORCH_HOME") as told:
        fetch(server.url, progress=False)
    assert "check the network" not in str(told.value)
