"""Heads that never end, and such as arrive in pieces."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from service.app import create_app
from service.protocol import UpgradeDecliningProtocol
from service.settings import Settings

KEY = "key-of-the-protocol-tests"


class Hasty(UpgradeDecliningProtocol):
    head_timeout_s = 0.3


@pytest.fixture
def start(fake: Any, served: Any) -> Any:
    @contextmanager
    def start(*, hasty: bool = False, seconds: float = 0.0, **settings: Any) -> Iterator[str]:
        app = create_app(Settings(**settings), load=lambda _: [fake(seconds=seconds)])
        with served(app, Hasty if hasty else UpgradeDecliningProtocol) as url:
            yield url

    return start


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.settimeout(20)
        yield connection


def until_closed(connection: socket.socket) -> bytes:
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionError:
        pass
    return received


def flood(connection: socket.socket, piece: bytes, most: int = 50_000_000) -> int:
    """Send a piece over and over until the other side has had enough; how many bytes that took."""
    sent = 0
    try:
        while sent < most:
            connection.sendall(piece)
            sent += len(piece)
    except OSError:
        pass
    return sent


CHUNKED = b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n", b"X-Header: " + b"a" * 1000 + b"\r\n"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Header: ", b"a" * 10_000),
        (b"GET /livez?", b"a" * 10_000),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n", b"a" * 10_000),
        (
            CHUNKED + b"0\r\n",
            b"T: " + b"a" * 1000 + b"\r\n",
        ),
        (CHUNKED + b"0\r\nT: ", b"a" * 10_000),
        (CHUNKED + b"1\r\na\r\n0\r\n", b"T: a\r\n" * 1000),
    ],
    ids=["headers", "header", "path", "no header", "trailers", "trailer", "trailers after a body"],
)
@pytest.mark.parametrize("keys", [None, KEY])
def test_a_head_without_end_is_cut_off(beginning: bytes, piece: bytes, keys: str | None, start: Any) -> None:
    with start(api_keys=keys) as url:
        with connected(url) as connection:
            connection.sendall(beginning)
            assert flood(connection, piece) < 50_000_000
        assert httpx.get(f"{url}/readyz").status_code == 200


def test_a_head_that_is_too_large_is_told_so(start: Any) -> None:
    with start() as url, connected(url) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Header: " + b"a" * 70_000)
        assert until_closed(connection).startswith(b"HTTP/1.1 431 ")


def test_a_large_head_and_a_large_body_pass(start: Any, make_png: Any) -> None:
    with start() as url, httpx.Client() as client:
        headers = {"X-Header": "a" * 50_000}
        for _ in range(3):
            assert client.post(f"{url}/detect", content=make_png(1), headers=headers).status_code == 200
            answer = client.post(f"{url}/detect", content=iter([bytes(100)] * 5000), headers=headers)
            assert answer.status_code == 400  # no image, yet read


@pytest.mark.parametrize("beginning", [b"", b"\r\n", b"GET /livez HT", b"GET /livez HTTP/1.1\r\nHost: x\r\nX-He"])
def test_a_head_that_does_not_come_is_not_waited_for(beginning: bytes, start: Any) -> None:
    with start(hasty=True) as url, connected(url) as connection:
        started = time.monotonic()
        connection.sendall(beginning)
        assert until_closed(connection).startswith(b"HTTP/1.1 408 ")
        assert 0.2 < time.monotonic() - started < 15


def test_a_dripping_head_is_not_waited_for(start: Any) -> None:
    with start(hasty=True) as url, connected(url) as connection:
        started = time.monotonic()
        try:
            while time.monotonic() - started < 15:
                connection.sendall(b"G" if time.monotonic() == started else b"E")
                time.sleep(0.05)
        except OSError:
            pass
        assert time.monotonic() - started < 15


def test_the_second_head_of_a_connection_is_timed_too(start: Any) -> None:
    with start(hasty=True) as url, connected(url) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /live")
        assert until_closed(connection).startswith(b"HTTP/1.1 408 ")


def test_a_slow_answer_is_not_cut_off_by_a_late_next_head(start: Any, make_png: Any) -> None:
    body = make_png(7)
    with start(hasty=True, seconds=1.0) as url, connected(url) as connection:
        connection.sendall(
            b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body + b"GET /li"
        )
        answers = until_closed(connection)
    assert answers.startswith(b"HTTP/1.1 200 ")
