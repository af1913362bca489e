"""The clients against the real service, with a detector that needs no model."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.client import (
    AsyncDetectionClient,
    BadParameterError,
    BadRequestError,
    ConnectionLostError,
    DeadlineError,
    DetectionClient,
    DetectionResult,
    ImageError,
    RetryPolicy,
)
from tests.support.clients import Sync
from tests.support.fakes import FakeDetector, red_png
from tests.support.servers import live


def test_importing_it_is_light() -> None:
    code = (
        "import sys, service.client\n"
        "heavy = {'torch', 'torchvision', 'fastapi', 'starlette', 'pydantic', 'pandas', 'supervision', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout == "[]\n"


def test_every_kind_of_image_is_taken(calling: type[Sync], tmp_path: Path) -> None:
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[..., 0] = 7
    path = tmp_path / "seven.png"
    path.write_bytes(red_png(7, (32, 48)))
    with live(FakeDetector()) as url:
        for image in (path, str(path), path.read_bytes(), pixels, Image.fromarray(pixels), Image.open(path)):
            result = calling(url).detect(image)
            assert result.boxes.tolist() == [[7, 1, 11, 9], [2, 3, 12, 23]]
            assert (result.width, result.height) == (48, 32)
    assert result.labels.tolist() == [1, 4]
    assert result.scores.tolist() == [0.9, 0.3]
    assert result.names == ("person", "dog")
    assert (result.model, result.weights, result.version) == ("fasterrcnn_resnet50_fpn", "fake", "fa4e01234567")
    assert result.timing.batch_size == 1
    assert {"decode", "queue", "inference"} <= set(result.timing.stages_ms)
    assert result.request_id


def test_options_reach_the_service(calling: type[Sync]) -> None:
    with live(FakeDetector()) as url:
        call = calling(url)
        assert len(call.detect(red_png(7), score_threshold=0.5)) == 1
        assert len(call.detect(red_png(7), max_detections=1)) == 1
        assert call.detect(red_png(7), score_threshold="0.1,person:0.95").names == ("dog",)
        assert call.detect(red_png(7), iou_threshold=0.1, class_agnostic=True).names == ("person",)
        for labels in ("dog", ["dog"], [4]):
            assert call.detect(red_png(7), labels=labels).names == ("dog",)
        tiled = call.detect(red_png(7, (40, 100)), tile=64, tile_overlap=0.4, tile_whole=False, max_detections=101)
        assert len(tiled) == 4  # in each of the two tiles the same
        assert sorted(tiled.xyxy()[:2, 0].tolist()) == [7, 43]
        result = call.detect(red_png(7, (40, 80)), box_format="cxcywh", normalized=True)
        assert result.boxes[0] == pytest.approx([9 / 80, 5 / 40, 4 / 80, 8 / 40])
        assert result.xyxy()[0] == pytest.approx([7, 1, 11, 9])
        with pytest.raises(BadParameterError) as caught:
            call.detect(red_png(7), labels="unicorn")
    assert (caught.value.status, caught.value.code) == (422, "bad-parameter")
    assert "unicorn" in str(caught.value)
    assert caught.value.request_id


def test_labels_health_and_drawing(calling: type[Sync]) -> None:
    with live(FakeDetector()) as url:
        call = calling(url)
        assert call.labels() == {1: "person", 2: "bicycle", 3: "car", 4: "dog"}
        assert call.health()["status"] == "ok"
        for image_format in ("png", "jpeg"):
            drawn = Image.open(io.BytesIO(call.draw(red_png(7, (40, 80)), image_format=image_format)))
            assert (drawn.format, drawn.size) == (image_format.upper(), (80, 40))


def test_many_keep_their_order_and_a_failure_its_place(calling: type[Sync]) -> None:
    images: list[Any] = [red_png(n) for n in range(60)]
    images[20] = b"broken"
    images[40] = Path("/nowhere.png")
    with live(FakeDetector(seconds=0.005), max_batch_size=4) as url:
        outcomes = calling(url).detect_many(iter(images), concurrency=3)
    assert isinstance(outcomes.pop(40), ImageError)
    assert isinstance(outcomes.pop(20), BadRequestError)
    expected = [n for n in range(60) if n not in (20, 40)]
    assert [int(result.boxes[0, 0]) for result in outcomes] == expected


def test_many_are_sent_so_many_at_a_time_and_taken_as_needed(calling: type[Sync]) -> None:
    lock, here, most, taken = threading.Lock(), 0, 0, 0

    def handler(request: httpx.Request) -> httpx.Response:
        nonlocal here, most
        with lock:
            here += 1
            most = max(most, here)
        time.sleep(0.005)
        with lock:
            here -= 1
        raise RuntimeError("not one of httpx's errors: it is the caller's to see")

    def images() -> Any:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield b"image"

    with pytest.raises(RuntimeError):
        calling(handler).detect_many(images(), concurrency=3)
    assert 1 <= most <= 3
    assert taken <= 13


def test_the_async_client_sends_several_at_a_time() -> None:
    detector = FakeDetector()
    detector.gate.clear()

    async def main(url: str) -> list[Any]:
        async with AsyncDetectionClient(url) as client:
            results = client.detect_many([red_png(n) for n in range(8)], concurrency=4)
            first = asyncio.ensure_future(anext(results))
            while (await client.health())["images_in_flight"] < 4:
                await asyncio.sleep(0.005)
            assert (await client.health())["images_in_flight"] == 4
            detector.gate.set()
            return [await first, *[outcome async for outcome in results]]

    with live(detector, max_batch_size=1) as url:
        outcomes = asyncio.run(asyncio.wait_for(main(url), 60))
    assert [int(result.boxes[0, 0]) for result in outcomes] == list(range(8))


def test_the_deadline_holds_and_is_told_to_the_service(calling: type[Sync]) -> None:
    detector = FakeDetector()
    detector.gate.clear()
    with live(detector) as url:
        began = time.monotonic()
        with pytest.raises(DeadlineError):
            calling(url).detect(red_png(1), timeout_s=0.3)
        assert 0.25 < time.monotonic() - began < 5
        detector.gate.set()
        assert len(calling(url).detect(red_png(2), timeout_s=20)) == 2


def test_no_service_is_said_so_after_the_retries(calling: type[Sync]) -> None:
    with pytest.raises(ConnectionLostError, match=r"http://127\.0\.0\.1:1/"):
        calling("http://127.0.0.1:1").detect(b"image")


def test_what_is_no_address_is_rejected_at_once() -> None:
    for url in ("localhost:8000", "ftp://host", "http://"):
        with pytest.raises(ValueError, match="no address"):
            DetectionClient(url)
    with pytest.raises(ValueError, match="at least one"):
        RetryPolicy(attempts=0)


def test_threads_may_share_a_client() -> None:
    with live(FakeDetector()) as url, DetectionClient(url) as client:
        outcomes = list(client.detect_many([red_png(n) for n in range(100)], concurrency=30))
    assert all(isinstance(outcome, DetectionResult) for outcome in outcomes)
