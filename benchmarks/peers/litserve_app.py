"""LitServe as its documentation shows it: `python litserve_app.py PORT`, with WORK=untouched|decode."""

import base64
import io
import os
import sys

import litserve as ls
from fastapi import Request
from PIL import Image

DECODES = os.environ["WORK"] == "decode"


class Detector(ls.LitAPI):
    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request: Request) -> bytes:
        return base64.b64decode(request["image"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, data: list[bytes]) -> list[dict[str, object]]:
        if DECODES:
            for one in data:
                Image.open(io.BytesIO(one)).convert("RGB")
        return [{"boxes": [], "labels": [], "scores": []} for _ in data]

    def unbatch(self, output: list[dict[str, object]]) -> list[dict[str, object]]:
        return output


if __name__ == "__main__":
    api = Detector(max_batch_size=16, batch_timeout=0.001)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=2 if DECODES else 1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
