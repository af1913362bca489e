"""HTTP/1.1 as connections bring it: in pieces, in a row, cut short, without end."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
import threading
import time
import weakref
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import RequestResponseCycle

from service.web.paced import PacedResponse
from service.web.protocol import LimitedProtocol
from tests.support.connections import connected, until_closed
from tests.support.fakes import FakeDetector, red_png
from tests.support.servers import live, served

KEY = "key-of-the-protocol-tests"


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
def test_a_head_without_end_is_cut_off(beginning: bytes, piece: bytes, keys: str | None) -> None:
    with live(FakeDetector(), api_keys=keys) as url:
        with connected(url) as connection:
            connection.sendall(beginning)
            assert flood(connection, piece) < 50_000_000
        assert httpx.get(f"{url}/readyz").status_code == 200


def test_a_head_that_is_too_large_is_told_so() -> None:
    with live(FakeDetector()) as url, connected(url) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Header: " + b"a" * 70_000)
        head, _, body = until_closed(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert json.loads(body)["type"] == "urn:faster-rcnn-service:head-too-large"


def test_a_large_head_and_a_large_body_pass() -> None:
    with live(FakeDetector()) as url, httpx.Client() as client:
        headers = {"X-Header": "a" * 50_000}
        for _ in range(3):
            assert client.post(f"{url}/detect", content=red_png(1), headers=headers).status_code == 200
            answer = client.post(f"{url}/detect", content=iter([bytes(100)] * 5000), headers=headers)
            assert answer.status_code == 400  # no image, yet read


def test_what_cannot_be_parsed_gets_a_problem_document() -> None:
    with live(FakeDetector()) as url, connected(url) as connection:
        connection.sendall(b"nonsense\r\nHost: x\r\n\r\n")
        head, _, body = until_closed(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"Content-Type: application/problem+json" in head
    assert b"X-Content-Type-Options: nosniff" in head
    problem = json.loads(body)
    assert problem["type"] == "urn:faster-rcnn-service:bad-request"
    assert f"X-Request-ID: {problem['request_id']}".encode() in head


def test_a_long_address_makes_no_long_answer() -> None:
    with live(FakeDetector()) as url:
        answer = httpx.post(f"{url}/detect?labels={'%C2%BF' * 8000}")
        assert answer.status_code == 422
        assert len(answer.content) < 10_000


@pytest.mark.parametrize(
    "following",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000,
        CHUNKED + b"zz\r\n",
        CHUNKED + b"1\r\na\r\n0\r\n" + b"T: a\r\n" * 20_000,
    ],
    ids=["nonsense", "large head", "broken chunks", "endless trailers"],
)
def test_a_request_is_answered_whatever_comes_behind_it(following: bytes) -> None:
    detector = FakeDetector()
    detector.gate.clear()
    body = red_png(4)
    with live(detector) as url, connected(url) as connection:
        connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert detector.started.wait(20)
        connection.sendall(following)
        assert httpx.get(f"{url}/readyz").status_code == 200
        detector.gate.set()
        first, second = until_closed(connection).split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200 ")
    assert json.loads(first.partition(b"\r\n\r\n")[2])["boxes"][0][0] == 4
    assert second.startswith(b"4")
    assert b"application/problem+json" in second


def test_a_body_that_breaks_its_framing_is_told_so() -> None:
    with live(FakeDetector()) as url, connected(url) as connection:
        connection.sendall(CHUNKED + b"5\r\nabcde\r\n")
        time.sleep(0.1)
        connection.sendall(b"zz\r\n")
        answer = until_closed(connection)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"body's framing" in answer
        assert httpx.get(f"{url}/healthz").json()["images_in_flight"] == 0


def answers(connection: socket.socket, count: int) -> list[tuple[int, dict[str, str], bytes]]:
    """Status, headers and body of so many answers, in order."""
    found: list[tuple[int, dict[str, str], bytes]] = []
    received = b""
    while len(found) < count:
        head, end, rest = received.partition(b"\r\n\r\n")
        if end:
            first, *lines = head.decode().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            size = int(headers.get("content-length", 0))
            if len(rest) >= size:
                found.append((int(first.split()[1]), headers, rest[:size]))
                received = rest[size:]
                continue
        piece = connection.recv(65536)
        assert piece, f"closed after {found} and {received!r}"
        received += piece
    assert not received
    return found


def request(body: bytes, *lines: bytes, version: bytes = b"1.1") -> bytes:
    head = [b"POST /detect HTTP/" + version, b"Host: x", b"Content-Length: %d" % len(body), *lines]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def red(answer: tuple[int, dict[str, str], bytes]) -> float:
    """Of the picture that it is for."""
    return float(json.loads(answer[2])["boxes"][0][0])


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_request_may_come_in_pieces(step: int) -> None:
    with live(FakeDetector()) as url, connected(url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in (3, 4):
            sent = request(red_png(number))
            for start in range(0, len(sent), step):
                connection.sendall(sent[start : start + step])
            (answer,) = answers(connection, 1)
            assert (answer[0], red(answer)) == (200, number)


def test_requests_may_be_sent_before_the_answers_come_which_keep_their_order() -> None:
    with live(FakeDetector(seconds=0.01)) as url, connected(url) as connection:
        connection.sendall(b"".join(request(red_png(number)) for number in range(1, 9)))
        assert [red(answer) for answer in answers(connection, 8)] == list(range(1, 9))


def test_a_large_body_comes_whole_in_one_piece_or_many() -> None:
    padded = red_png(5) + bytes(3_000_000)  # a decoder stops at the image's end
    with live(FakeDetector()) as url, connected(url) as connection:
        connection.sendall(request(padded))
        assert red(answers(connection, 1)[0]) == 5
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(padded[at : at + 9999]), padded[at : at + 9999])
                          for at in range(0, len(padded), 9999))  # fmt: skip
        connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
        connection.sendall(b"0\r\n\r\n")
        assert red(answers(connection, 1)[0]) == 5


def test_whoever_asks_before_sending_the_body_is_told_to_go_on() -> None:
    body = red_png(6)
    with live(FakeDetector()) as url, connected(url) as connection:
        connection.sendall(request(body, b"Expect: 100-continue")[: -len(body)])
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert red(answers(connection, 1)[0]) == 6


@pytest.mark.parametrize(("version", "line"), [(b"1.0", b"X: y"), (b"1.1", b"Connection: close")])
def test_a_connection_closes_when_it_is_asked_to(version: bytes, line: bytes) -> None:
    with live(FakeDetector()) as url, connected(url) as connection:
        connection.sendall(request(red_png(7), line, version=version))
        (answer,) = answers(connection, 1)
        assert answer[1]["connection"] == "close"
        assert red(answer) == 7
        assert connection.recv(1) == b""


def test_asked_for_the_head_alone_it_sends_no_body() -> None:
    with live(FakeDetector()) as url, connected(url) as connection:
        connection.sendall(b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while not received.endswith(b'{"status":"ok"}'):
            received += connection.recv(65536)
        assert received.count(b"HTTP/1.1 200 OK\r\n") == 2
        assert received.count(b'{"status":"ok"}') == 1


def test_the_rest_of_a_body_that_is_rejected_is_no_next_request() -> None:
    with live(FakeDetector()) as url, connected(url) as connection:
        connection.sendall(request(bytes(5_000_000), b"X-Request-Timeout-Ms: never") + request(red_png(8)))
        rejected, answer = answers(connection, 2)
        assert (rejected[0], answer[0], red(answer)) == (422, 200, 8)


def test_a_rejection_may_be_read_before_the_rest_of_the_body_is_sent() -> None:
    rejected = request(bytes(3_000_000), b"X-Request-Timeout-Ms: never")
    with live(FakeDetector()) as url, connected(url) as connection:
        connection.sendall(rejected[:200_000])
        assert answers(connection, 1)[0][0] == 422
        connection.sendall(rejected[200_000:])
        connection.sendall(request(red_png(9)))
        assert red(answers(connection, 1)[0]) == 9


def test_a_body_that_nobody_reads_is_left_with_the_caller() -> None:
    gate = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        while not gate.is_set():
            await asyncio.sleep(0.01)
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
        await send({"type": "http.response.body", "body": b"%08d" % size})

    with served(app, ready=False) as url, connected(url) as connection:
        sender = threading.Thread(target=connection.sendall, args=(request(bytes(40_000_000)),))
        sender.start()
        time.sleep(0.5)
        still_sends = sender.is_alive()
        gate.set()
        assert still_sends
        assert answers(connection, 1)[0][2] == b"40000000"
        sender.join(20)


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with 4 MB."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4000000")]})
    await send({"type": "http.response.body", "body": bytes(4_000_000)})


def test_answers_that_nobody_reads_are_not_made() -> None:
    made = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal made
        await large(scope, receive, send)
        made += 1

    with served(app, ready=False) as url, connected(url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 30)
        time.sleep(0.5)
        assert 1 <= made < 10
        assert len(answers(connection, 30)) == 30


class HastyProtocol(LimitedProtocol):
    patience_s = 0.4


@pytest.mark.parametrize("asked", [1, 30])
def test_a_caller_who_does_not_read_is_cut_off(asked: int) -> None:
    with served(large, HastyProtocol, ready=False) as url, connected(url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * asked)
        time.sleep(1.5)
        assert len(until_closed(connection)) < 4_000_000 * asked


def test_a_caller_who_reads_slowly_gets_all() -> None:
    with served(large, HastyProtocol, ready=False) as url, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        address = urlsplit(url)
        connection.connect((address.hostname, address.port))
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = 0
        while piece := connection.recv(100_000):
            received += len(piece)
            time.sleep(0.02)
    assert received > 4_000_000


HUGE = 24_000_000  # more than the system's buffers take


async def huge(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers at once."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % HUGE)]})
    await send({"type": "http.response.body", "body": bytes(HUGE)})


async def in_pieces(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers as it is read."""
    await PacedResponse(bytes(HUGE), media_type="image/png")(scope, receive, send)


class BriefProtocol(LimitedProtocol):
    patience_s, answer_s = 0.4, 0.8


def test_a_caller_who_never_finishes_reading_is_cut_off() -> None:
    """It reads enough not to be silent, and holds the answer's memory meanwhile."""
    with served(in_pieces, BriefProtocol, ready=False) as url, connected(url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received, give_up = 0, time.monotonic() + 20
        try:
            while (piece := connection.recv(100_000)) and time.monotonic() < give_up:
                received += len(piece)
                time.sleep(0.02)
        except ConnectionError:
            pass
    assert received < HUGE


class StingyProtocol(LimitedProtocol):
    most_unsent = 2 * HUGE


def test_answers_that_nobody_reads_have_a_budget() -> None:
    with served(huge, StingyProtocol, ready=False) as url, ExitStack() as stack:
        silent = [stack.enter_context(connected(url)) for _ in range(6)]
        for connection in silent:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert connection.recv(1000)
        whole = [len(until_closed(connection)) > HUGE - 1000 for connection in silent]
        assert 1 <= whole.count(True) <= 4
        assert len(httpx.get(url).content) == HUGE


def test_an_answer_that_fails_when_it_was_begun_ends_the_connection() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        raise OSError("the file is gone")

    with served(app, ready=False) as url, pytest.raises(httpx.RemoteProtocolError):
        httpx.get(url)


def test_a_trailer_is_no_header() -> None:
    body = b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
    with live(FakeDetector(), api_keys=KEY) as url, connected(url) as connection:
        connection.sendall(body + b"X-API-Key: " + KEY.encode() + b"\r\nConnection: close\r\n\r\n")
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert [status for status, _, _ in answers(connection, 2)] == [401, 200]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
    ids=["no host", "two hosts", "another encoding", "two lengths"],
)
def test_what_is_ambiguous_is_rejected(head: bytes) -> None:
    with live(FakeDetector()) as url, connected(url) as connection:
        connection.sendall(head)
        answer = until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in answer


@pytest.mark.parametrize(
    ("host", "statuses"),
    [(host, [b"400", b"400"]) for host in (b"[", b"a b", b"[::1", b"x@y", b"x/y", b"x:y", b"[x]", b"[v1.x]", b"\xff")]
    + [(host, [b"404", b"200"]) for host in (b"", b"x:99999999", b"[::1]:8000", b"[fe80::1%25a]", b"a_b:80")],
)  # fmt: skip
@pytest.mark.parametrize("accept", [b"*/*", b"text/html"])
def test_an_invalid_host_is_rejected(host: bytes, statuses: list[bytes], accept: bytes) -> None:
    with live(FakeDetector()) as url, connected(url) as connection:
        connection.sendall(b"GET /none HTTP/1.1\r\nHost: " + host + b"\r\nAccept: " + accept + b"\r\n\r\n")
        connection.sendall(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n")
        received = until_closed(connection)
    assert re.findall(rb"HTTP/1.1 (\d+) ", received) == statuses


def test_a_client_of_http_1_0_is_not_told_to_continue() -> None:
    with live(FakeDetector()) as url, connected(url) as connection:
        connection.sendall(request(red_png(6), b"Expect: 100-continue", version=b"1.0"))
        assert until_closed(connection).startswith(b"HTTP/1.1 200 ")


def cycles_of(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[RequestResponseCycle]]:
    """uvicorn's object of each request that begins from now on; it holds what was read of the body."""
    begun: list[weakref.ref[RequestResponseCycle]] = []
    before = RequestResponseCycle.__init__

    def watched(self: RequestResponseCycle, *args: Any, **given: Any) -> None:
        before(self, *args, **given)
        begun.append(weakref.ref(self))

    monkeypatch.setattr(RequestResponseCycle, "__init__", watched)
    return begun


@pytest.mark.parametrize("how", ["rejected", "broken", "left", "late"])
def test_no_body_is_kept_of_a_request_that_has_ended(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = cycles_of(monkeypatch)
    detector = FakeDetector()
    detector.gate.clear()
    sent = {
        "rejected": request(bytes(200_000), b"X-Request-Timeout-Ms: never"),
        "broken": request(bytes(200_000)),
        "left": request(red_png(1) + bytes(200_000)),
        "late": request(red_png(1), b"X-Request-Timeout-Ms: 200"),
    }[how]
    with live(detector) as url:
        begun.clear()
        gc.disable()
        try:
            with connected(url) as connection:
                connection.sendall(sent)
                if how == "left":
                    assert detector.started.wait(20)
                else:
                    answers(connection, 1)
            detector.gate.set()
            give_up = time.monotonic() + 10
            while begun[0]() is not None and time.monotonic() < give_up:
                time.sleep(0.02)
            assert begun[0]() is None
        finally:
            gc.enable()
