from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from service.bench.processes import ServerLostError, StandIn, until_ready
from tests.support.fakes import FakeDetector


def test_a_server_that_ends_at_once_is_lost() -> None:
    with pytest.raises(ServerLostError, match="did not start"):
        until_ready("http://127.0.0.1:9", is_alive=lambda: False)


def test_a_server_is_waited_for_until_it_is_ready() -> None:
    statuses = [503, 503, 200]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        until_ready(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()
    assert statuses == []


def test_a_stand_in_finds_nothing_and_says_what_the_detector_is() -> None:
    stand_in = StandIn(FakeDetector(), 0.0)
    assert stand_in.info == FakeDetector().info
    found = stand_in.detect([torch.zeros(3, 4, 4, dtype=torch.uint8)] * 2)
    assert [len(one.boxes) for one in found] == [0, 0]
    assert found[0].boxes.dtype == np.float32
