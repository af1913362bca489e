"""The service on several nodes: it grows, loses one, shrinks, and nobody is left without the right answer."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from service.client import Detection, DetectionClient, RetryPolicy
from tests.support.clusters import Scaled
from tests.support.faulty_app import zero_to_one
from tests.support.faulty_server import numbered_png

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray's own, of what it imports

CALLERS = 18
BATCH_S = 0.1  # as the cluster's environment says


def expected_score(png: bytes) -> float:
    """What every replica must find in it, by all of its pixels."""
    pixels = np.array(Image.open(io.BytesIO(png)).convert("RGB")).transpose(2, 0, 1)
    return zero_to_one(torch.from_numpy(np.ascontiguousarray(pixels)))


class Load:
    """Callers who ask again and again."""

    def __init__(self, url: str, retry: RetryPolicy) -> None:
        self._client = DetectionClient(url, timeout_s=60, retry=retry)
        self._pictures = {number: numbered_png(number) for number in range(1, 60)}
        self._scores = {number: expected_score(png) for number, png in self._pictures.items()}
        self._first: dict[int, Detection] = {}  # whichever replica gave it, the others must give the same
        self.stop = threading.Event()
        self.answered: list[int] = []
        self.wrong: list[str] = []

    def call(self, first: int) -> None:
        number = first
        while not self.stop.is_set():
            number = number % 59 + 1
            try:
                (found,) = self._client.detect(self._pictures[number])
            except Exception as error:
                self.wrong.append(f"{number}: {type(error).__name__} {error}")
                continue
            right = int(found.box[0]) == number and abs(found.score - self._scores[number]) < 1e-5
            if not right or found != self._first.setdefault(number, found):
                self.wrong.append(f"{number}: {found}")
            self.answered.append(number)


@contextmanager
def load(url: str, *, callers: int, attempts: int) -> Iterator[Load]:
    given = Load(url, RetryPolicy(attempts=attempts))
    with ThreadPoolExecutor(callers) as pool:
        calls: list[Future[None]] = [pool.submit(given.call, 3 * caller) for caller in range(callers)]
        try:
            yield given
        finally:
            given.stop.set()
    for call in calls:
        call.result()


def test_it_grows_loses_a_node_and_shrinks_and_everybody_is_answered(scaled: Scaled) -> None:
    scaled.deploy(max_replicas=3, target_ongoing_requests=4, downscale_delay_s=3)
    assert scaled.replicas() == 1
    with load(scaled.url, callers=CALLERS, attempts=5) as calls:
        grown_s = scaled.until(lambda: scaled.replicas() == 3, "three replicas under load")
        before = len(calls.answered)
        known = scaled.ran()

        def all_work() -> bool:
            ran = scaled.ran()
            return len(ran) == 3 and all(ran[pid] != known.get(pid) for pid in ran)

        scaled.until(all_work, "work for every replica")
        killed = scaled.workers.pop()
        scaled.cluster.remove_node(killed, allow_graceful=False)
        scaled.until(lambda: scaled.replicas() == 2, "the loss noticed")
        enough = len(calls.answered) + 10 * CALLERS
        scaled.until(lambda: len(calls.answered) > enough, "answers after the loss")
    assert calls.wrong == []
    ran = scaled.ran()
    # With a node, its proxy's count of requests is lost; the delay is so short that Serve may shrink, and grow again.
    assert len(ran) >= 3
    # With one caller left, two replicas are too many; it never retries, so none may be lost while one drains.
    with load(scaled.url, callers=1, attempts=1) as calls_at_the_end:
        shrunk_s = scaled.until(lambda: scaled.replicas() == 1, "one replica")
        enough = len(calls_at_the_end.answered) + 20
        scaled.until(lambda: len(calls_at_the_end.answered) > enough, "answers of the last one")
    assert calls_at_the_end.wrong == []
    each = sorted(sum(counts.values()) for counts in ran.values())
    print(
        f"RECORD 1 to 3 replicas after {grown_s:.0f} s ({before} answers), a node killed, {len(calls.answered)} "
        f"answers in all, 0 wrong or missing; by the replicas {each}; back to 1 after {shrunk_s:.0f} s, "
        f"{len(calls_at_the_end.answered)} answers meanwhile without a second try"
    )


def test_headers_and_problems_pass_the_proxy(scaled: Scaled) -> None:
    scaled.deploy(max_replicas=1)
    with httpx.Client(base_url=scaled.url, timeout=30) as client:
        found = client.post("/detect", content=numbered_png(7), headers={"X-Request-ID": "mine-1"})
        assert (found.status_code, found.json()["boxes"][0][0]) == (200, 7)
        assert found.headers.get_list("x-request-id") == ["mine-1"]
        assert [part.split(";")[0].strip() for part in found.headers["server-timing"].split(",")] == [
            "decode", "queue", "inference", "batch"
        ]  # fmt: skip
        assert found.headers["x-content-type-options"] == "nosniff"
        broken = client.post("/detect", content=b"no image", headers={"X-Request-ID": "not one that is taken"})
        assert (broken.status_code, broken.headers["content-type"]) == (400, "application/problem+json")
        assert broken.json()["request_id"] in broken.headers.get_list("x-request-id")  # Serve adds the caller's
        assert client.get("/healthz").json()["status"] == "ok"
        drawn = client.post("/detect", content=numbered_png(7), headers={"Accept": "image/png"})
        assert drawn.content.startswith(b"\x89PNG")


def test_the_replica_rejects_before_serve_does(scaled: Scaled) -> None:
    scaled.deploy(max_replicas=1, queue_capacity=4, target_ongoing_requests=2)
    picture = numbered_png(7)

    async def flood() -> list[httpx.Response]:
        async with httpx.AsyncClient(
            base_url=scaled.url, timeout=30, limits=httpx.Limits(max_connections=None)
        ) as client:
            return await asyncio.gather(*(client.post("/detect", content=picture) for _ in range(60)))

    answers = asyncio.run(flood())
    rejected = [answer for answer in answers if answer.status_code != 200]
    assert 3 <= len(answers) - len(rejected) < 30  # all are of one caller, whose share of the 4 places is 3
    assert {answer.status_code for answer in rejected} == {429}
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in rejected)
    assert {answer.json()["type"] for answer in rejected} == {"urn:faster-rcnn-service:queue-full"}
    assert all("images are being answered" in answer.json()["detail"] for answer in rejected)  # the replica's words


def test_deadlines_are_kept_and_who_leaves_never_runs(scaled: Scaled) -> None:
    scaled.deploy(max_replicas=1)
    sent = asyncio.Event()

    async def note_sent(event: str, _: Any) -> None:
        if event == "http11.send_request_body.complete":
            sent.set()

    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=scaled.url, timeout=30) as client:
            ahead = [asyncio.create_task(client.post("/detect", content=numbered_png(n))) for n in range(1, 31)]
            await asyncio.sleep(2 * BATCH_S)
            extensions = {"trace": note_sent}
            leaving = asyncio.create_task(client.post("/detect", content=numbered_png(40), extensions=extensions))
            await sent.wait()
            await asyncio.sleep(BATCH_S)  # until it waits in the replica, behind most of three seconds' work
            leaving.cancel()
            late = await client.post("/detect", content=numbered_png(41), headers={"X-Request-Timeout-Ms": "60"})
            assert late.status_code in {429, 504}
            assert late.headers["content-type"] == "application/problem+json"
            assert [answer.status_code for answer in await asyncio.gather(*ahead)] == [200] * 30
            assert (await client.post("/detect", content=numbered_png(42))).status_code == 200

    asyncio.run(scenario())
    (ran,) = scaled.ran().values()
    assert 42 in ran
    assert not {40, 41} & set(ran)


def test_a_replica_whose_device_hangs_is_replaced(scaled: Scaled) -> None:
    hangs = 3
    scaled.deploy(max_replicas=1, hang_timeout_s=1, on_failure="exit")
    with DetectionClient(scaled.url, timeout_s=60) as client:
        client.detect(numbered_png(1))
        (first,) = scaled.ran()
        answer = httpx.post(f"{scaled.url}/detect", content=numbered_png(2, hangs), timeout=30)
        assert answer.status_code == 503
        started = time.monotonic()

        def answered_by_another() -> bool:
            (found,) = client.detect(numbered_png(3))
            assert int(found.box[0]) == 3
            return any(3 in ran for pid, ran in scaled.ran().items() if pid != first)

        scaled.until(answered_by_another, "another replica")
    print(f"RECORD a replica whose device hung was replaced after {time.monotonic() - started:.0f} s")
