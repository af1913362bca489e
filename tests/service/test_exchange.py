"""Requests as connections bring them: in pieces, in a row, cut short."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from service.exchange import Exchange, body_is_whole, exchange_of
from service.protocol import ImpatientProtocol


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.settimeout(20)
        yield connection


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
    return httpx.Response(answer[0], content=answer[2]).json()["boxes"][0][0]


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_request_may_come_in_pieces(step: int, live: Any, fake: Any, make_png: Any) -> None:
    with live(fake()) as url, connected(url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in (3, 4):
            sent = request(make_png(number))
            for start in range(0, len(sent), step):
                connection.sendall(sent[start : start + step])
            (answer,) = answers(connection, 1)
            assert (answer[0], red(answer)) == (200, number)


def test_requests_may_be_sent_before_the_answers_come_which_keep_their_order(
    live: Any, fake: Any, make_png: Any
) -> None:
    with live(fake(seconds=0.01)) as url, connected(url) as connection:
        connection.sendall(b"".join(request(make_png(number)) for number in range(1, 9)))
        assert [red(answer) for answer in answers(connection, 8)] == list(range(1, 9))


def test_a_large_body_comes_whole_in_one_piece_or_many(live: Any, fake: Any, make_png: Any) -> None:
    padded = make_png(5) + bytes(3_000_000)  # a decoder stops at the image's end
    with live(fake()) as url, connected(url) as connection:
        connection.sendall(request(padded))
        assert red(answers(connection, 1)[0]) == 5
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(padded[at : at + 9999]), padded[at : at + 9999])
                          for at in range(0, len(padded), 9999))  # fmt: skip
        connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
        connection.sendall(b"0\r\n\r\n")
        assert red(answers(connection, 1)[0]) == 5


def test_whoever_asks_before_sending_the_body_is_told_to_go_on(live: Any, fake: Any, make_png: Any) -> None:
    body = make_png(6)
    with live(fake()) as url, connected(url) as connection:
        connection.sendall(request(body, b"Expect: 100-continue")[: -len(body)])
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert red(answers(connection, 1)[0]) == 6


@pytest.mark.parametrize(("version", "line"), [(b"1.0", b"X: y"), (b"1.1", b"Connection: close")])
def test_a_connection_closes_when_it_is_asked_to(
    version: bytes, line: bytes, live: Any, fake: Any, make_png: Any
) -> None:
    with live(fake()) as url, connected(url) as connection:
        connection.sendall(request(make_png(7), line, version=version))
        (answer,) = answers(connection, 1)
        assert answer[1]["connection"] == "close"
        assert red(answer) == 7
        assert connection.recv(1) == b""


def test_asked_for_the_head_alone_it_sends_no_body(live: Any, fake: Any) -> None:
    with live(fake()) as url, connected(url) as connection:
        connection.sendall(b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while not received.endswith(b'{"status":"ok"}'):
            received += connection.recv(65536)
        assert received.count(b"HTTP/1.1 200 OK\r\n") == 2
        assert received.count(b'{"status":"ok"}') == 1


def test_the_rest_of_a_body_that_is_refused_is_no_next_request(live: Any, fake: Any, make_png: Any) -> None:
    with live(fake()) as url, connected(url) as connection:
        connection.sendall(request(bytes(5_000_000), b"X-Request-Timeout-Ms: never") + request(make_png(8)))
        refused, answer = answers(connection, 2)
        assert (refused[0], answer[0], red(answer)) == (422, 200, 8)


@pytest.mark.parametrize("pause_s", [0, 0.3])
def test_of_requests_in_a_row_the_one_at_work_is_dropped_when_its_caller_leaves(
    pause_s: float, live: Any, fake: Any, make_png: Any
) -> None:
    detector = fake()
    detector.gate.clear()
    with live(detector, max_batch_size=1) as url:
        with connected(url) as busy, connected(url) as leaving:
            busy.sendall(request(make_png(1)))
            assert detector.started.wait(20)
            sent = [request(make_png(2)), request(make_png(3))]
            for packet in sent if pause_s else [b"".join(sent)]:
                leaving.sendall(packet)
                time.sleep(pause_s)
            time.sleep(0.3)
            leaving.close()
            give_up = time.monotonic() + 20
            while httpx.get(f"{url}/healthz").json()["images_in_flight"] > 1 and time.monotonic() < give_up:
                time.sleep(0.02)
            detector.gate.set()
            assert red(answers(busy, 1)[0]) == 1
        assert httpx.get(f"{url}/healthz").json()["images_in_flight"] == 0
    assert [batch[0][0] for batch in detector.batches] == [1]


def test_few_requests_wait_on_a_connection(live: Any, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[int] = []
    before = ImpatientProtocol.on_headers_complete

    def counted(protocol: ImpatientProtocol) -> None:
        before(protocol)
        waiting.append(len(protocol.pipeline))

    monkeypatch.setattr(ImpatientProtocol, "on_headers_complete", counted)
    asked = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    with live(fake()) as url, connected(url) as connection:

        def read() -> None:
            with suppress(OSError):
                while connection.recv(1 << 20):
                    pass

        reader = threading.Thread(target=read)
        reader.start()
        connection.settimeout(2)
        with suppress(OSError):  # it may close while we send
            for _ in range(60):
                connection.sendall(asked * 1000)
            connection.shutdown(socket.SHUT_RDWR)
        reader.join(20)
    assert 4 < max(waiting) <= 100


def test_of_too_many_in_a_row_those_that_are_taken_are_answered(live: Any, fake: Any, make_png: Any) -> None:
    detector = fake()
    detector.gate.clear()
    with live(detector) as url, connected(url) as connection:
        connection.sendall(request(make_png(1)))
        assert detector.started.wait(20)
        asked = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
        connection.sendall(asked * 1000)
        time.sleep(0.3)
        with suppress(TimeoutError):  # what comes after is not heard
            connection.settimeout(1)
            connection.sendall(asked * 10_000)
        connection.settimeout(20)
        detector.gate.set()
        found = answers(connection, 101)
    assert [answer[0] for answer in found] == [200] * 101
    assert red(found[0]) == 1
    assert found[100][1]["connection"] == "close"


def test_what_waits_on_a_connection_that_ends_is_not_kept(
    live: Any, fake: Any, make_png: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = exchanges_of(monkeypatch)
    detector = fake()
    detector.gate.clear()
    with live(detector) as url:
        begun.clear()
        gc.disable()
        try:
            with connected(url) as connection:
                connection.sendall(request(make_png(1)) + request(make_png(2)) * 3 + request(bytes(90_000))[:-1])
                assert detector.started.wait(20)
                give_up = time.monotonic() + 20
                while len(begun) < 5 and time.monotonic() < give_up:
                    time.sleep(0.02)
            detector.gate.set()
            give_up = time.monotonic() + 20
            while any(exchange() is not None for exchange in begun) and time.monotonic() < give_up:
                time.sleep(0.02)
            assert [exchange() for exchange in begun] == [None] * 5
        finally:
            gc.enable()


def test_a_body_that_nobody_reads_is_left_with_the_caller(served: Any) -> None:
    exchanges: list[Exchange] = []
    gate = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        assert exchange is not None
        exchanges.append(exchange)
        while not gate.is_set():
            await asyncio.sleep(0.01)
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
        await send({"type": "http.response.body", "body": b"%08d" % size})

    sent = request(bytes(40_000_000))
    with served(app, ImpatientProtocol, ready=False) as url, connected(url) as connection:
        sender = threading.Thread(target=connection.sendall, args=(sent,))
        sender.start()
        time.sleep(0.5)
        assert sender.is_alive()
        assert 0 < exchanges[0].size < 2_000_000
        gate.set()
        assert answers(connection, 1)[0][2] == b"40000000"
        sender.join(20)


def test_answers_that_nobody_reads_are_not_made(served: Any) -> None:
    made = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal made
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4000000")]})
        await send({"type": "http.response.body", "body": bytes(4_000_000)})
        made += 1

    with served(app, ImpatientProtocol, ready=False) as url, connected(url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 30)
        time.sleep(0.5)
        assert 1 <= made < 10
        assert len(answers(connection, 30)) == 30


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ((b"Transfer-Encoding", b"chunked"), "transfer-encoding"),
        ((b"Connection", b"close"), "connection"),
        ([b"x-list", b"yes"], "x-list"),
    ],
)
def test_headers_written_otherwise_mean_the_same(header: Any, expected: str, served: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [] if expected == "transfer-encoding" else [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": [*headers, header]})
        await send({"type": "http.response.body", "body": b"ok"})

    with served(app, ImpatientProtocol, ready=False) as url, connected(url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while b"ok" not in received:
            received += connection.recv(4096)
        head, _, body = received.lower().partition(b"\r\n\r\n")
        assert head.count(b"\r\n%b: %b" % tuple(part.lower() for part in header)) == 1
        assert body.startswith(b"2\r\nok\r\n" if expected == "transfer-encoding" else b"ok")
        if expected == "connection":
            assert connection.recv(1) == b""


@pytest.mark.parametrize(
    "header",
    [
        (b"x-bad", b"a\r\nSet-Cookie: b"),
        (b"x-bad", b"a\nb"),
        (b"x\r\ny", b"a"),
        (b"x-bad", b"a\x00b"),
        (b"x bad: y", b"a"),
    ],
)
def test_no_header_can_smuggle_another(header: tuple[bytes, bytes], served: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert exchange_of(scope) is not None
        assert body_is_whole(scope)
        headers = [(b"content-length", b"2"), header]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    with served(app, ImpatientProtocol, ready=False) as url, pytest.raises(httpx.RemoteProtocolError):
        httpx.get(url)


@pytest.mark.parametrize("raises", [True, False])
def test_an_answer_that_was_begun_and_never_came_becomes_a_failure(raises: bool, served: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        if raises:
            raise OSError("the file is gone")

    with served(app, ImpatientProtocol, ready=False) as url, httpx.Client(timeout=5) as client:
        assert [client.get(url).status_code for _ in range(2)] == [500, 500]


def test_a_refusal_may_be_read_before_the_rest_of_the_body_is_sent(live: Any, fake: Any, make_png: Any) -> None:
    refused = request(bytes(3_000_000), b"X-Request-Timeout-Ms: never")
    with live(fake()) as url, connected(url) as connection:
        connection.sendall(refused[:200_000])
        assert answers(connection, 1)[0][0] == 422
        connection.sendall(refused[200_000:])
        connection.sendall(request(make_png(9)))
        assert red(answers(connection, 1)[0]) == 9


def exchanges_of(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Exchange]]:
    """All that begin from now on."""
    begun: list[weakref.ref[Exchange]] = []
    before = Exchange.__init__

    def watched(self: Exchange, **given: Any) -> None:
        before(self, **given)
        begun.append(weakref.ref(self))

    monkeypatch.setattr(Exchange, "__init__", watched)
    return begun


def test_a_refused_body_is_not_kept(live: Any, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = exchanges_of(monkeypatch)
    with live(fake()) as url, connected(url) as connection:
        begun.clear()
        gc.disable()
        try:
            connection.sendall(request(bytes(200_000), b"X-Request-Timeout-Ms: never"))
            answers(connection, 1)
            give_up = time.monotonic() + 20
            while begun[0]().pieces and time.monotonic() < give_up:  # type: ignore[union-attr]
                time.sleep(0.02)
            assert begun[0]().size == 0  # type: ignore[union-attr]
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            answers(connection, 1)
            time.sleep(0.1)
            first, _ = begun
            assert first() is None
        finally:
            gc.enable()


def test_under_another_server_there_is_no_exchange() -> None:
    assert exchange_of({"type": "http"}) is None
    assert not body_is_whole({"type": "http", "extensions": {}})
