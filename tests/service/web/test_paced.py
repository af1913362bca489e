from __future__ import annotations

import threading
import time

from starlette.types import Receive, Scope, Send

from service.web.paced import PacedResponse
from service.web.protocol import LimitedProtocol
from tests.support.connections import connected, until_closed
from tests.support.servers import served

HUGE = 24_000_000  # more than the system's buffers take


class HastyProtocol(LimitedProtocol):
    patience_s = 0.4


async def in_pieces(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers as it is read."""
    await PacedResponse(bytes(HUGE), media_type="image/png")(scope, receive, send)


def test_an_answer_in_pieces_is_made_as_it_is_read() -> None:
    finished = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await in_pieces(scope, receive, send)
        finished.set()

    with served(app, ready=False) as url, connected(url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert connection.recv(1000)
        assert not finished.wait(0.3)
        assert len(until_closed(connection)) > HUGE - 1000
        assert finished.wait(20)


def test_a_caller_who_reads_an_answer_in_pieces_slowly_gets_all() -> None:
    with served(in_pieces, HastyProtocol, ready=False) as url, connected(url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = 0
        while piece := connection.recv(500_000):
            received += len(piece)
            time.sleep(0.02)
    assert received > HUGE
