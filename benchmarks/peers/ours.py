"""This service with a detector that finds nothing and takes no time: `python ours.py PORT`, with WORK=untouched|decode.

HTTP=httptools takes uvicorn's other protocol, which has no limits, to measure what h11 costs.

Batching, deadlines, metrics and headers are on, as always; the access log is off, as it is at the peers. With
a detector it is `frcnn serve`.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from works import WORK

from model.weights.categories import Categories
from service import server
from service.api import pipeline
from service.devices.detector import Detections, ModelInfo
from service.images.pictures import Picture
from service.server import serve
from service.settings import Settings


class Nothing:
    """Implements `service.detector.Detector`."""

    info = ModelInfo("nothing", "none", Categories.of_objects(["thing"]))
    device, precision, backend, best_batch_size = "cpu", "fp32", "none", 64
    _found = Detections(
        boxes=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int64), scores=np.zeros(0, np.float32)
    )

    def padded_shape(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        return size_hw

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        return [self._found] * len(images)


class _Unopened:
    upright_wh = (1, 1)
    work = working_bytes = 0


def leave_bytes_untouched() -> None:
    """Every file is the same picture; the way to the decoding threads and back stays."""
    picture = Picture(torch.zeros((3, 1, 1), dtype=torch.uint8))
    pipeline.open_image = lambda *_, **__: _Unopened()  # type: ignore[assignment]
    pipeline.upright_rgb = lambda *_, **__: picture


if __name__ == "__main__":
    if WORK == "untouched":
        leave_bytes_untouched()
    if os.environ.get("HTTP") == "httptools":
        server.LimitedProtocol = HttpToolsProtocol  # type: ignore[misc]
    settings = Settings(access_log=False, max_batch_size=64)
    sys.exit(serve(settings, socket.create_server(("127.0.0.1", int(sys.argv[1]))), load=lambda _: [Nothing()]))
