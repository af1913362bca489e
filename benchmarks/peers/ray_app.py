"""Ray Serve as its documentation shows it: `python ray_app.py PORT`, with WORK=untouched|decode|detect."""

from __future__ import annotations

import sys
import time

from ray import serve
from starlette.requests import Request
from works import WORK, Answer, work

# A detector takes both cores by itself, and no batch is faster for it than one image after the other.
BATCH = 2 if WORK == "detect" else 16


@serve.deployment(
    num_replicas=2 if WORK == "decode" else 1,
    ray_actor_options={"num_cpus": 2 if WORK == "detect" else 0.5},  # it is also how many threads torch has
    max_ongoing_requests=64,
)
class Detector:
    def __init__(self) -> None:
        self.work = work()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.001)
    async def detect(self, images: list[bytes]) -> list[Answer]:
        return self.work(images)

    async def __call__(self, request: Request) -> Answer:
        return await self.detect(await request.body())


if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Detector.bind(), route_prefix="/detect")
    while True:
        time.sleep(3600)
