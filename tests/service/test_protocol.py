"""Headers that never end."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

KEY = "key-of-the-protocol-tests"


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
def test_a_head_without_end_is_cut_off(beginning: bytes, piece: bytes, keys: str | None, live: Any, fake: Any) -> None:
    with live(fake(), api_keys=keys) as url:
        with connected(url) as connection:
            connection.sendall(beginning)
            assert flood(connection, piece) < 50_000_000
        assert httpx.get(f"{url}/readyz").status_code == 200


def test_a_head_that_is_too_large_is_told_so(live: Any, fake: Any) -> None:
    with live(fake()) as url, connected(url) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Header: " + b"a" * 70_000)
        head, _, body = until_closed(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert json.loads(body)["type"] == "urn:faster-rcnn-service:head-too-large"


@pytest.mark.parametrize("size", [65_600, 70_000, 100_000])
def test_a_whole_head_that_is_too_large_is_told_so(size: int, live: Any, fake: Any) -> None:
    with live(fake()) as url, connected(url) as connection:
        connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nX-Header: " + b"a" * size + b"\r\n\r\n")
        head, _, body = until_closed(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert json.loads(body)["type"] == "urn:faster-rcnn-service:head-too-large"
        assert 'status="499"' not in httpx.get(f"{url}/metrics").text


def test_a_large_head_and_a_large_body_pass(live: Any, fake: Any, make_png: Any) -> None:
    with live(fake()) as url, httpx.Client() as client:
        headers = {"X-Header": "a" * 50_000}
        for _ in range(3):
            assert client.post(f"{url}/detect", content=make_png(1), headers=headers).status_code == 200
            answer = client.post(f"{url}/detect", content=iter([bytes(100)] * 5000), headers=headers)
            assert answer.status_code == 400  # no image, yet read


# Too long an address is found out by the parser or by the count of bytes, as they happen to arrive.
@pytest.mark.parametrize(
    ("request_line", "codes"),
    [
        (b"POST /detect?labels=" + b"%C2%BF" * 11_000 + b" HTTP/1.1", {"bad-request", "head-too-large"}),
        (b"nonsense", {"bad-request"}),
    ],
    ids=["long address", "nonsense"],
)
def test_what_cannot_be_parsed_gets_a_problem_document(
    request_line: bytes, codes: set[str], live: Any, fake: Any
) -> None:
    with live(fake()) as url, connected(url) as connection:
        for start in range(0, len(request_line), 30_000):
            connection.sendall(request_line[start : start + 30_000])
        connection.sendall(b"\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        head, _, body = until_closed(connection).partition(b"\r\n\r\n")
    assert b"Content-Type: application/problem+json" in head
    assert b"X-Content-Type-Options: nosniff" in head
    told = json.loads(body)
    assert told["type"].rpartition(":")[2] in codes
    assert head.startswith(b"HTTP/1.1 %d " % told["status"])
    assert f"X-Request-ID: {told['request_id']}".encode() in head


def test_no_complaint_is_written_into_the_middle_of_an_answer(live: Any, fake: Any, make_png: Any) -> None:
    detector = fake()
    detector.gate.clear()
    with live(detector) as url, connected(url) as connection:
        body = make_png(1)
        head = f"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert detector.started.wait(20)
        connection.sendall(b"\0 garbage\r\n\r\n")
        detector.gate.set()
        assert b"400 Bad Request" not in until_closed(connection)
        assert httpx.get(f"{url}/readyz").status_code == 200


@pytest.mark.parametrize(
    "following",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"1\r\na\r\n0\r\n" + b"T: a\r\n" * 200_000,
    ],
    ids=["nonsense", "large head", "broken chunks", "endless trailers"],
)
def test_a_request_is_answered_whatever_comes_behind_it(following: bytes, live: Any, fake: Any, make_png: Any) -> None:
    detector = fake()
    detector.gate.clear()
    body = make_png(4)
    with live(detector) as url, connected(url) as connection:
        connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert detector.started.wait(20)
        connection.sendall(following)
        assert httpx.get(f"{url}/readyz").status_code == 200
        detector.gate.set()
        head, _, answer = until_closed(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in head
    assert json.loads(answer)["boxes"][0][0] == 4


def test_a_body_that_breaks_its_framing_is_told_so(live: Any, fake: Any) -> None:
    with live(fake()) as url, connected(url) as connection:
        connection.sendall(CHUNKED + b"5\r\nabcde\r\n")
        time.sleep(0.1)
        connection.sendall(b"zz\r\n")
        answer = until_closed(connection)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"body's framing" in answer
        assert httpx.get(f"{url}/healthz").json()["images_in_flight"] == 0
