"""Ray Serve as its documentation shows it: `python ray_app.py PORT`, with WORK=untouched|decode."""

from __future__ import annotations

import io
import os
import sys
import time

from PIL import Image
from ray import serve
from starlette.requests import Request

DECODES = os.environ["WORK"] == "decode"


@serve.deployment(num_replicas=2 if DECODES else 1, ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=64)
class Detector:
    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.001)
    async def detect(self, images: list[bytes]) -> list[dict[str, object]]:
        if DECODES:
            for one in images:
                Image.open(io.BytesIO(one)).convert("RGB")
        return [{"boxes": [], "labels": [], "scores": []} for _ in images]

    async def __call__(self, request: Request) -> dict[str, object]:
        return await self.detect(await request.body())


if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Detector.bind(), route_prefix="/detect")
    while True:
        time.sleep(3600)
