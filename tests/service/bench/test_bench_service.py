from __future__ import annotations

import io

import httpx
import pytest
from PIL import Image
from typer.testing import CliRunner

from service.bench.measure import BenchError, bare_rate, load
from service.bench.pictures import jpeg
from service.bench.plain_app import plain_app
from service.bench.processes import running
from service.cli.app import app
from tests.support.fakes import FakeDetector


def test_the_picture_has_the_size_of_a_photograph() -> None:
    data = jpeg((480, 640))
    assert 90_000 < len(data) < 120_000
    assert Image.open(io.BytesIO(data)).size == (640, 480)


def test_the_bare_rate_is_of_the_detector_at_its_best_batch() -> None:
    detector = FakeDetector(seconds=0.01)
    detector.best_batch_size = 4
    rate = bare_rate(detector, jpeg((32, 32)), 0.3)
    assert {len(batch) for batch in detector.batches} == {4}
    assert 40 < rate <= 400  # 4 each 10 ms, or later on a busy machine


def test_a_server_process_is_measured_and_its_batches_are_told() -> None:
    with running("stand-in", batch_size=4, batch_s=0.05) as url:
        run = load(url, [jpeg((48, 64)), jpeg((64, 48))], 8, 1.0)
        assert run["failed"] == 0
        assert max(map(int, run["batch_sizes"])) > 1
        with pytest.raises(BenchError, match="failed"):
            load(url, [b"no image"], 1, 1.0)


@pytest.mark.anyio
async def test_the_plain_service_answers() -> None:
    transport = httpx.ASGITransport(plain_app("fasterrcnn_resnet50_fpn", "cpu"))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=120) as client:
        answer = (await client.post("/detect", content=jpeg((48, 64)))).json()
    assert answer.keys() == {"boxes", "labels", "scores"}


def test_a_device_that_is_not_there_ends_with_a_message() -> None:
    result = CliRunner().invoke(app, ["bench", "service", "--device", "cuda:77"])
    assert result.exit_code == 1
    assert "there is no device" in result.output
