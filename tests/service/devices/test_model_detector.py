"""The host path on a real GPU: memory that runs out, a kernel that goes astray, uploads while graphs are captured."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from model.images.opened import pageable
from service.batching.batcher import Batcher
from service.devices.loading import load_detectors
from service.devices.model_detector import GPUDetector
from service.images.pictures import Picture, from_pixels
from service.settings import Settings
from tests.support.batchers import running
from tests.support.processes import script_environment

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.fault,
    pytest.mark.anyio,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

_SETTINGS: dict[str, Any] = {"weights": "bundled", "device": "cuda:0", "precision": "fp16", "max_batch_size": 16}


@pytest.fixture(scope="module")
def detector() -> GPUDetector:
    (detector,) = load_detectors(Settings(**_SETTINGS))
    assert isinstance(detector, GPUDetector)
    return detector


def photo(seed: int, size_hw: tuple[int, int] = (480, 640)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)


def sent(batcher: Batcher, seed: int, size_hw: tuple[int, int] = (480, 640)) -> Picture:
    return batcher.upload_early(from_pixels(photo(seed, size_hw), allocate=batcher.allocate))


async def answered(batcher: Batcher, pictures: list[Picture]) -> list[Any]:
    async with asyncio.timeout(120):
        return await asyncio.gather(*map(batcher.submit, pictures), return_exceptions=True)


async def test_memory_that_runs_out_splits_batches_and_comes_back(detector: GPUDetector) -> None:
    torch.cuda.synchronize()
    detector._model.forget()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    # Enough for the weights and a few pictures, not for sixteen.
    room = torch.cuda.memory_reserved(0) + (1 << 30)
    async with running(detector, max_batch_size=16, hang=120.0) as batcher:
        torch.cuda.set_per_process_memory_fraction(room / total, 0)
        try:
            answers = await answered(batcher, [sent(batcher, seed, (800, 1088)) for seed in range(48)])
            caps = batcher.batch_caps
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, 0)
        assert not [answer for answer in answers if isinstance(answer, BaseException)]
        assert caps
        assert caps["cuda:0"] < 16
        assert batcher.failure is None
        for _ in range(40):  # the cap rises again, batch by batch
            await answered(batcher, [sent(batcher, seed) for seed in range(16)])
        assert batcher.batch_caps.get("cuda:0", 16) > caps["cuda:0"]


async def test_the_same_answers_with_two_batches_in_flight_as_alone(detector: GPUDetector) -> None:
    alone = [detector.detect([from_pixels(photo(seed)).pixels])[0] for seed in range(40)]
    async with running(detector, max_batch_size=4, hang=120.0) as batcher:
        answers = await answered(batcher, [sent(batcher, seed) for seed in range(40)])
    for answer, expected in zip(answers, alone, strict=True):
        found = answer.detections
        strong = expected.scores > 0.5
        assert (found.labels[: strong.sum()] == expected.labels[strong]).all()
        np.testing.assert_allclose(found.boxes[: strong.sum()], expected.boxes[strong], atol=0.5)


def test_pictures_are_uploaded_while_graphs_are_captured(detector: GPUDetector) -> None:
    """From slots and, as the buffer overflows, from pageable memory."""
    sizes = [(240, 320 + 32 * n) for n in range(12)]

    def upload(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        size_hw = sizes[seed % len(sizes)]
        picture = from_pixels(photo(seed, size_hw), allocate=detector.allocate if seed % 5 else pageable)
        return picture.pixels, detector.upload(picture.pixels)

    with ThreadPoolExecutor(8) as threads:
        uploads = threads.map(upload, range(600))
        for size_hw in sizes:
            for count in (1, 2, 4):
                detector._model.capture_for(size_hw, count)
        torch.cuda.synchronize()
        for pixels, on_device in uploads:
            assert on_device.cpu().equal(pixels)
    assert not detector._model._policy._rejected  # type: ignore[attr-defined]


@pytest.fixture
def breakable(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    log = tmp_path / "log"
    environment = {f"FRCNN_{name.upper()}": str(value) for name, value in _SETTINGS.items()}
    environment |= {"FRCNN_ON_FAILURE": "exit"}
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.support.gpu_app"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=script_environment() | environment,
        )
    try:
        give_up = time.monotonic() + 300
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())) or not _is_ready(found[0]):
            assert child.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < give_up, log.read_text()[-3000:]
            time.sleep(0.1)
        yield child, found[0], log
    finally:
        child.kill()
        child.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_a_kernel_that_goes_astray_ends_the_process_and_its_callers_are_told(
    breakable: tuple[subprocess.Popen[bytes], str, Path], tmp_path: Path
) -> None:
    child, url, log = breakable
    pixels = photo(1)
    Image.fromarray(pixels).save(tmp_path / "good.png")
    pixels[0, 0] = (1, 254, 3)  # see `BREAKS` of `tests.support.gpu_app`
    Image.fromarray(pixels).save(tmp_path / "bad.png")

    def post(name: str) -> int:
        content = (tmp_path / name).read_bytes()
        headers = {"Content-Type": "image/png"}
        return httpx.post(f"{url}/detect", content=content, headers=headers, timeout=60).status_code

    assert post("good.png") == 200
    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(post, ["bad.png"] + ["good.png"] * 7))
    assert statuses[0] == 503
    assert set(statuses) <= {200, 503}
    assert child.wait(60) == 1, log.read_text()[-3000:]
    assert "no device answers" in log.read_text()


def test_memory_is_flat_over_many_shapes_and_batch_sizes(detector: GPUDetector) -> None:
    detector._model.capture_when_idle([], [])
    shapes = [(height, width) for height in (256, 320, 384, 448, 512) for width in range(320, 768, 64)]
    assert len(shapes) == 35
    reserved = []
    for _ in range(3):
        for size_hw in shapes:
            for count in (1, 2, 4, 8, 16):
                detector.detect([torch.from_numpy(photo(0, size_hw)).permute(2, 0, 1)] * count)
                detector.prepare()
        torch.cuda.synchronize()
        reserved.append(torch.cuda.memory_reserved(0))
    assert reserved[2] <= 1.05 * reserved[1]
