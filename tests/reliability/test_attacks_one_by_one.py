"""Attacks that have once held, each alone, on the service as it is by default in a process of its own.

They send bytes and know nothing of the code, so that they can be run against another version.
"""

from __future__ import annotations

import asyncio
import re
import resource
import signal
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.slowest_images import chunk, gif, many_scans, tiff
from tests.support.attackers import (
    MOST_BATCHES_WAITED,
    MOST_BYTES,
    MOST_LOG_LINES,
    batch,
    jpeg,
    noise,
    photo,
    webp,
)
from tests.support.calls import Reply, call, post, record
from tests.support.connections import connected, until_closed
from tests.support.default_server import DefaultServer, served_as_by_default, start_as_by_default

pytestmark = pytest.mark.reliability

KEY = "a-key-that-is-long-enough"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DefaultServer]:
    """One for all that leaves it running; it must be as well after them."""
    with served_as_by_default(tmp_path_factory.mktemp("server") / "log", access_log=False, decode_threads=2) as server:
        yield server
        assert ask(server, HEALTH).status == 200
        assert "Traceback" not in server.log.read_text()


def ask(server: DefaultServer, request: bytes) -> Reply:
    return asyncio.run(call(server.port, request))


def exchange(server: DefaultServer, data: bytes) -> bytes:
    """What is answered until the connection closes."""
    with connected(f"http://127.0.0.1:{server.port}") as connection:
        connection.settimeout(60)
        connection.sendall(data)
        return until_closed(connection)


@contextmanager
def mute(server: DefaultServer, requests: list[bytes]) -> Iterator[None]:
    """Send each over a connection of its own, and read nothing."""
    with ExitStack() as open_:
        for request in requests:
            connection = open_.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(request)
        yield


@pytest.mark.parametrize(
    "requests",
    [
        lambda: [batch([webp(8192)] * 16)],
        lambda: [batch([jpeg(8192)] * 32)],
        lambda: [post(jpeg(8192), Accept="image/png")] * 24,
    ],
    ids=["a batch of 16 WebP of 38 bytes", "a batch of 32 JPEG", "24 pictures are drawn"],
)
def test_memory_is_released_only_when_it_is_free(server: DefaultServer, requests: Callable[[], list[bytes]]) -> None:
    sent = requests()

    async def all_at_once() -> list[Reply]:
        return await asyncio.gather(*(call(server.port, request) for request in sent))

    server.forget_most_memory()
    replies = asyncio.run(all_at_once())
    most = server.most_memory_kib() * 1024
    record(f"{len(sent)} requests of {len(sent[0]):,} bytes: {[r.status for r in replies]}, {most / 2**20:,.0f} MiB")
    assert most < MOST_BYTES
    assert {reply.status for reply in replies} <= {200, 413, 429, 503, 504}
    assert 200 in {reply.status for reply in replies}


def rows_of_one_pixel() -> bytes:
    header = struct.pack(">IIBBBBB", 1, 1 << 26, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(2 << 26), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def ends_of_lines() -> bytes:
    """One row of 67 million pixels, of which almost none is set: Pillow's Python decoder fills the rest."""
    encoded = bytes([1, 7]) + bytes([0, 0]) * 6 + bytes([0, 1])
    head = struct.pack("<IiiHHIIiiII", 40, 1 << 26, 1, 1, 8, 1, len(encoded), 0, 0, 256, 256)
    start = 54 + 1024
    return b"BM" + struct.pack("<IHHI", start + len(encoded), 0, 0, start) + head + bytes(range(256)) * 4 + encoded


@pytest.mark.parametrize(
    "make",
    [
        ends_of_lines,
        lambda: tiff(1, 1_000_000, zlib.compress(bytes(1))),
        lambda: many_scans(Image.new("L", (8192, 8192)), 99),
        rows_of_one_pixel,
        lambda: gif(b"\x21\xfe" + b"\1x" * 10_000_000 + b"\0"),
    ],
    ids=["BMP, ends of lines", "TIFF, a million strips", "JPEG, 99 scans", "PNG, 1 x 67 million", "GIF, comments"],
)
def test_work_is_bounded_before_it_begins(server: DefaultServer, make: Callable[[], bytes]) -> None:
    data = make()
    reply = ask(server, post(data))
    record(f"{len(data):,} bytes: {reply.status} after {reply.seconds:.2f} s, {reply.body[:200]!r}")
    assert reply.status == 413
    assert b"too-large" in reply.body


def test_answers_that_nobody_reads_are_given_up(server: DefaultServer) -> None:
    drawn = post(noise(3000), Accept="image/png")

    def until_there_are(count: int) -> None:
        give_up = time.monotonic() + 75
        while server.connections() != count:
            assert time.monotonic() < give_up
            time.sleep(0.05)

    until_there_are(0)
    with mute(server, [drawn] * 3):
        until_there_are(3)
        began = time.monotonic()
        until_there_are(0)
    seconds = time.monotonic() - began
    record(f"3 drawn answers that nobody reads are given up after {seconds:.0f} s")
    assert seconds > 15, "they were no answers of this size"


def test_callers_without_a_key_who_do_not_read_do_not_delay_the_end(tmp_path: Path) -> None:
    pages = b"GET /page/sample.jpg HTTP/1.1\r\nHost: x\r\n\r\n" * 99
    with (
        served_as_by_default(tmp_path / "log", api_keys=KEY, access_log=False, shutdown_timeout_s=20) as server,
        mute(server, [pages] * 50),
    ):
        time.sleep(2)
        logged = len(server.lines())
        began = time.monotonic()
        server.child.send_signal(signal.SIGTERM)
        code = server.child.wait(120)
        seconds = time.monotonic() - began
        lines = server.lines()[logged:]
    record(f"SIGTERM beside 50 callers who do not read: exit {code} after {seconds:.1f} s, {len(lines)} lines")
    assert code == 0
    assert seconds < 15  # five to read what is answered, none to wait for requests, as none was accepted
    assert len(lines) <= MOST_LOG_LINES


def test_a_lack_of_memory_is_no_fault_of_the_picture(server: DefaultServer) -> None:
    picture = webp(5200)  # of 38 bytes: most of the memory that it needs is that of its decoder
    assert ask(server, post(picture)).status == 200
    before = resource.prlimit(server.child.pid, resource.RLIMIT_AS)
    resource.prlimit(server.child.pid, resource.RLIMIT_AS, (server.address_space() + (20 << 20), before[1]))
    try:
        reply = ask(server, post(picture))
    finally:
        resource.prlimit(server.child.pid, resource.RLIMIT_AS, before)
    record(f"without memory: {reply.status}, {reply.body[:200]!r}")
    assert reply.status == 503
    assert "retry-after:" in reply.head.lower()
    assert ask(server, post(picture)).status == 200


def test_a_trailer_is_no_header(tmp_path: Path) -> None:
    head = b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
    trailer = b"X-API-Key: " + KEY.encode() + b"\r\nConnection: close\r\n\r\n"
    following = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with served_as_by_default(tmp_path / "log", api_keys=KEY) as server:
        received = exchange(server, head + trailer + following)
    assert received.count(b"HTTP/1.1 401 ") == 1
    assert received.count(b"HTTP/1.1 200 ") == 1


def test_a_log_that_nobody_reads_stops_nothing() -> None:
    unknown = (
        b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n" * 99 + b"GET /none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    child = start_as_by_default(subprocess.PIPE)
    try:
        assert child.stdout is not None
        said = ""
        while "ready:" not in said:
            line = child.stdout.readline().decode()
            assert line, said
            said += line
        (port,) = re.findall(r"http://127\.0\.0\.1:(\d+)", said)[:1]

        async def ask_often() -> Reply:
            for _ in range(40):
                await asyncio.wait_for(call(int(port), unknown), 20)
            return await asyncio.wait_for(call(int(port), HEALTH), 20)

        assert asyncio.run(ask_often()).status == 200
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize(
    "host", [b"", b"Host: x\r\nHost: y\r\n", b"Host: [\r\n"], ids=["no Host", "two Hosts", "a Host that is none"]
)
def test_the_host_is_one(server: DefaultServer, host: bytes) -> None:
    received = exchange(server, b"GET /livez HTTP/1.1\r\n" + host + b"Connection: close\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 400 ")


def test_a_client_of_http_1_0_is_not_told_to_continue(server: DefaultServer) -> None:
    body = photo()
    head = b"POST /detect HTTP/1.0\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    received = exchange(server, head + body)
    assert received.startswith(b"HTTP/1.1 200 ")


def test_an_encoding_that_is_not_unpacked_is_rejected(server: DefaultServer) -> None:
    head = b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"
    assert exchange(server, head + b"1\r\na\r\n0\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_a_long_query_makes_no_long_answer(server: DefaultServer) -> None:
    received = exchange(server, post(photo(), f"/detect?labels={'%C2%BF' * 8900}"))
    record(f"a query of 53 kB makes an answer of {len(received):,} bytes")
    assert received.startswith(b"HTTP/1.1 422 ")
    assert len(received) < 10_000


def test_a_lone_caller_does_not_wait_for_two_hundred_others(server: DefaultServer) -> None:
    picture = photo()

    async def greedy() -> None:
        while True:
            await call(server.port, post(picture), "127.1.0.1")
            await asyncio.sleep(0.5)

    async def lone() -> list[Reply]:
        others = [asyncio.create_task(greedy()) for _ in range(200)]
        await asyncio.sleep(3)
        replies = [await call(server.port, post(picture)) for _ in range(5)]
        for other in others:
            other.cancel()
        ends = await asyncio.gather(*others, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends
        return replies

    replies = asyncio.run(lone())
    assert [reply.status for reply in replies] == [200] * 5
    waited = [reply.stage_ms("queue") / reply.stage_ms("inference") for reply in replies]
    seconds = ", ".join(f"{reply.seconds:.2f}" for reply in replies)
    record(f"a lone caller beside 200 connections waits {max(waited):.1f} batches at most; answers after {seconds} s")
    assert max(waited) < MOST_BATCHES_WAITED
