"""mosec as its documentation shows it: `python mosec_app.py --port PORT`, with WORK=untouched|decode."""

from __future__ import annotations

import io
import os

from mosec import Server, Worker
from PIL import Image

DECODES = os.environ["WORK"] == "decode"


class Detector(Worker):
    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[dict[str, object]]:
        if DECODES:
            for one in data:
                Image.open(io.BytesIO(one)).convert("RGB")
        return [{"boxes": [], "labels": [], "scores": []} for _ in data]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Detector, num=2 if DECODES else 1, max_batch_size=16, max_wait_time=1)
    server.run()
