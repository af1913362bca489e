"""LitServe as its documentation shows it: `python litserve_app.py PORT`, with WORK=untouched|decode|detect."""

import base64
import sys
from collections.abc import Sequence

import litserve as ls
from fastapi import Request
from works import WORK, Answer, work


class Detector(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.work = work()

    def decode_request(self, request: Request) -> bytes:
        return base64.b64decode(request["image"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, data: Sequence[bytes]) -> list[Answer]:
        return self.work(data)

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        return output


if __name__ == "__main__":
    # A detector takes both cores by itself, and no batch is faster for it than one image after the other.
    api = Detector(max_batch_size=2 if WORK == "detect" else 16, batch_timeout=0.001)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=2 if WORK == "decode" else 1, timeout=600)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
