"""nginx.conf at work, where nginx is installed, before replicas that are played here."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

CONFIG = Path(__file__).parents[2] / "docker" / "nginx.conf"
RETRY_AFTER = "7"  # seconds, of a replica's own rejection


class Replica(BaseHTTPRequestHandler):
    """Hangs up on /detect, as one does that a picture ends; is full for every other path."""

    asked: list[str]

    def do_POST(self) -> None:
        self.asked.append(self.path)
        self.close_connection = True
        if not self.path.startswith("/detect"):
            self.send_response(429)
            self.send_header("Retry-After", RETRY_AFTER)
            self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def asked() -> list[str]:
    """The paths that replicas were asked for."""
    return []


@pytest.fixture
def address(asked: list[str], tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Of nginx, with three replicas behind it."""
    program = shutil.which("nginx")
    if program is None:
        pytest.skip("needs nginx")
    handler = type("Handler", (Replica,), {"asked": asked})
    with ExitStack() as ending:
        ports = []
        for _ in range(3):
            server = ending.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            thread = Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            ending.callback(thread.join)
            ending.callback(server.shutdown)
            ports.append(server.server_address[1])
        with socket.create_server(("127.0.0.1", 0)) as free:
            listens = free.getsockname()
        # Docker's names are not there: the three are an upstream of the same name, which nginx looks for first.
        replicas = "".join(f" server 127.0.0.1:{port} max_fails=0;" for port in ports)
        config = CONFIG.read_text()
        for ours, here in {
            "/tmp/": f"{tmp_path}/",
            "listen 8080": f"listen 127.0.0.1:{listens[1]}",
            "$replicas:8000": "$replicas",
            "    server {": f"    upstream detectors {{{replicas} }}\n    server {{",
        }.items():
            assert ours in config
            config = config.replace(ours, here)
        (tmp_path / "nginx.conf").write_text(config)
        command = [program, "-c", str(tmp_path / "nginx.conf"), "-g", "daemon off;"]
        process = ending.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        ending.callback(process.terminate)
        give_up = time.monotonic() + 20
        while not listening(*listens):
            assert process.poll() is None, "nginx does not start"
            assert time.monotonic() < give_up, "nginx does not listen"
            time.sleep(0.05)
        yield listens


def listening(host: str, port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex((host, port)) == 0


def post(address: tuple[str, int], path: str) -> httpx.Response:
    host, port = address
    return httpx.post(f"http://{host}:{port}{path}", content=b"x")


def announce(address: tuple[str, int], path: str, size: int) -> socket.socket:
    """A connection over which a body of so many bytes is to come."""
    connection = socket.create_connection(address)
    connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
    return connection


@pytest.mark.parametrize("path", ["/detect", "/detect/batch"])
def test_a_picture_that_ends_its_replica_ends_one_more_at_most(
    path: str, address: tuple[str, int], asked: list[str]
) -> None:
    assert post(address, path).status_code == 502
    assert asked == [path] * 2


def test_a_rejection_is_an_answer(address: tuple[str, int], asked: list[str]) -> None:
    reply = post(address, "/v2/models/a/infer")
    assert (reply.status_code, reply.headers["Retry-After"]) == (429, RETRY_AFTER)
    assert len(asked) == 1


@pytest.mark.parametrize(("path", "mib"), [("/detect", 45), ("/v2/models/a/infer", 45), ("/detect/batch", 258)])
def test_a_body_too_large_is_rejected_before_it_comes(path: str, mib: int, address: tuple[str, int]) -> None:
    with announce(address, path, mib << 20) as connection:
        connection.settimeout(20)
        assert connection.recv(64).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(("path", "most"), [("/detect", 64), ("/detect/batch", 4)])
def test_an_address_has_so_many_requests_at_a_time(path: str, most: int, address: tuple[str, int]) -> None:
    with ExitStack() as held:
        for _ in range(most):
            held.enter_context(announce(address, path, 100))
        give_up = time.monotonic() + 8  # before nginx gives up waiting for the bodies
        while (reply := post(address, path)).status_code != 429:
            assert time.monotonic() < give_up, "more were taken"
        assert reply.headers["Retry-After"] == "1"
        assert post(address, "/detect").status_code == (429 if path == "/detect" else 502)
