"""What only a real server over a real socket shows."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from service.web.protocol import LimitedProtocol
from tests.support.fakes import FakeDetector, red_png
from tests.support.servers import live, served


def until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def in_flight(url: str) -> int:
    return int(httpx.get(f"{url}/healthz").json()["images_in_flight"])


def requests(url: str) -> int:
    """Count the requests in flight, also those whose body still arrives; without this one."""
    found = re.search(r"^frcnn_requests_in_flight (\d+)", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    assert found is not None
    return int(found[1]) - 1


def test_many_callers_each_get_their_own_answer() -> None:
    detector = FakeDetector(seconds=0.03)
    shapes = [(32, 64), (64, 32), (96, 96)]
    with live(detector, max_batch_size=8) as url, ThreadPoolExecutor(16) as callers, httpx.Client() as client:

        def call(n: int) -> tuple[int, dict[str, Any]]:
            return n, client.post(f"{url}/detect", content=red_png(n, shapes[n % 3])).json()

        for n, body in callers.map(call, range(120)):
            assert body["boxes"][0][0] == n
            assert (body["image"]["height"], body["image"]["width"]) == shapes[n % 3]
    assert all(len({(h, w) for _, h, w in batch}) == 1 for batch in detector.batches)
    assert sum(map(len, detector.batches)) == 120
    assert len(detector.batches) < 80


def test_a_caller_who_hangs_up_frees_its_place_and_never_runs() -> None:
    detector = FakeDetector()
    detector.gate.clear()
    with live(detector) as url, ThreadPoolExecutor(1) as callers:
        first = callers.submit(httpx.post, f"{url}/detect", content=red_png(1), timeout=30)
        until(detector.started.is_set)
        address = urlsplit(url)
        body = red_png(2)
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            until(lambda: in_flight(url) == 2)
        until(lambda: in_flight(url) == 1)
        detector.gate.set()
        assert first.result().status_code == 200
        assert httpx.post(f"{url}/detect", content=red_png(3)).status_code == 200
        metrics = httpx.get(f"{url}/metrics").text
    assert [[red for red, _, _ in batch] for batch in detector.batches] == [[1], [3]]
    assert 'frcnn_requests_total{route="/detect",status="499"} 1.0' in metrics


def test_a_caller_who_hangs_up_while_sending_is_counted_as_gone() -> None:
    with live(FakeDetector()) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
            until(lambda: requests(url) == 1)
        until(lambda: requests(url) == 0)
        metrics = httpx.get(f"{url}/metrics").text
    assert 'frcnn_requests_total{route="/detect",status="499"} 1.0' in metrics
    assert 'status="500"' not in metrics


def test_an_offer_of_http_2_is_declined_and_the_body_kept() -> None:
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    with live(FakeDetector()) as url:
        response = httpx.post(f"{url}/detect", content=red_png(7), headers=headers)
    assert response.status_code == 200
    assert response.json()["boxes"][0][0] == 7


@pytest.mark.parametrize("offered", [b"websocket", b"h2c, x", b"TLS/1.0"])
def test_other_offers_are_declined_and_no_body_becomes_a_request(offered: bytes) -> None:
    hidden = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"POST /detect HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %b\r\nContent-Length: %d\r\n\r\n"
    with live(FakeDetector()) as url:
        answer = exchanged(url, head % (offered, len(hidden)), hidden)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"not an image" in answer
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4])
def test_what_looks_like_an_offer_in_a_body_stays(cut: int) -> None:
    received = b""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal received
        more = True
        while more:
            message = await receive()
            received, more = received + message["body"], message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    body = b"a\r\nUpgrade: h2c\r\n\r\nb"
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    at = len(head) - cut
    with served(app, ready=False) as url:
        assert exchanged(url, head[:at], head[at:] + body).startswith(b"HTTP/1.1 200 ")
    assert received == body


def exchanged(url: str, *packets: bytes) -> bytes:
    """All that a connection says to packets, until it has been silent for a while or ends."""
    address, received = urlsplit(url), b""
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for packet in packets:
                connection.sendall(packet)
                time.sleep(0.1)
            while piece := connection.recv(65536):
                received += piece
                connection.settimeout(0.5)
        except (TimeoutError, ConnectionError):
            pass
    return received


def test_half_a_body_times_out() -> None:
    with live(FakeDetector(), request_timeout_ms=200) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
            connection.settimeout(20)
            assert b" 504 " in connection.recv(4096).splitlines()[0]
        until(lambda: requests(url) == 0)


@pytest.mark.parametrize("drips", [False, True])
def test_a_body_that_comes_too_slowly_is_cut_off(drips: bool) -> None:
    with live(FakeDetector(), body_timeout_s=0.5) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port), timeout=0.05) as connection:
            connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nhalf")
            answer, give_up = b"", time.monotonic() + 20
            while time.monotonic() < give_up:
                try:
                    if drips:
                        connection.sendall(b".")
                    received = connection.recv(4096)
                except TimeoutError:
                    continue
                except ConnectionError:
                    break  # it was closed on our last drops
                if not received:
                    break
                answer += received
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b" 408 " in head.splitlines()[0]
        assert b"application/problem+json" in head
        assert b"connection: close" in head.lower()
        assert b"body-timeout" in body
        until(lambda: requests(url) == 0)


def test_a_form_is_read_as_it_comes() -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n.\r\n'
    with live(FakeDetector(), max_batch_files=2) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
            head = b"Host: x\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 100000000\r\n\r\n"
            connection.sendall(b"POST /detect/batch HTTP/1.1\r\n" + head + part * 4)
            assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")  # the rest would not have changed that
        until(lambda: requests(url) == 0)


def is_rejected(url: str, body: dict[str, Any]) -> bool:
    return httpx.post(url, **body).status_code == 429


def test_bodies_that_still_come_cannot_fill_the_memory() -> None:
    with live(FakeDetector(), queue_capacity_bytes=100_000) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
            connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + bytes(99_999))
            until(lambda: requests(url) == 1)
            for path in ("/detect", "/v2/models/fasterrcnn_resnet50_fpn/infer", "/detect/batch"):
                body: dict[str, Any] = {"files": {"file": red_png(1)}} if "batch" in path else {"content": red_png(1)}
                until(partial(is_rejected, f"{url}{path}", body))
            told = re.search(
                r'frcnn_images_rejected_total\{reason="bytes-full"\} (\S+)', httpx.get(f"{url}/metrics").text
            )
            assert told is not None
            assert float(told[1]) >= 3
        until(lambda: requests(url) == 0)
        assert httpx.post(f"{url}/detect", content=red_png(1)).status_code == 200


class HastyProtocol(LimitedProtocol):
    patience_s = 0.4


@pytest.mark.parametrize(
    "sent", [b"", b"POST /detect HTTP/1.1\r\nX-Half: ", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /"]
)
def test_a_head_that_never_ends_is_cut_off(sent: bytes) -> None:
    with live(FakeDetector(), http=HastyProtocol) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port), timeout=0.05) as connection:
            connection.sendall(sent)
            started = time.monotonic()
            while time.monotonic() < started + 4:  # less than uvicorn's own patience between two requests
                try:
                    if sent:
                        connection.sendall(b"x")
                    if not connection.recv(4096):
                        break
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
            else:
                pytest.fail("still connected")


def test_a_request_that_takes_long_outlives_the_patience_for_heads() -> None:
    with live(FakeDetector(seconds=1.2), http=HastyProtocol) as url, httpx.Client() as client:
        for n in (1, 2):
            assert client.post(f"{url}/detect", content=red_png(n)).json()["boxes"][0][0] == n
            time.sleep(0.6)


@pytest.mark.parametrize("size", [1_000_000, 30_000_000])
def test_a_body_over_the_limit_is_rejected_however_large(size: int) -> None:
    with live(FakeDetector(), max_body_bytes=100_000) as url:
        response = httpx.post(f"{url}/detect", content=bytes(size), timeout=20)
        assert response.status_code == 413
        assert response.json()["title"]
        assert httpx.post(f"{url}/detect", content=red_png(1)).status_code == 200


def test_a_server_that_stops_answers_what_it_accepted() -> None:
    detector = FakeDetector()
    detector.gate.clear()
    with ThreadPoolExecutor(4) as callers:
        with live(detector, max_batch_size=2) as url:
            accepted = [callers.submit(httpx.post, f"{url}/detect", content=red_png(n), timeout=30) for n in range(4)]
            until(lambda: in_flight(url) == 4)
            threading.Timer(0.3, detector.gate.set).start()
        assert sorted(one.result().json()["boxes"][0][0] for one in accepted) == [0, 1, 2, 3]
