from __future__ import annotations

import httpx
import pytest

from service.bench.measure import BenchError, bare_rate, load
from service.bench.pictures import jpeg
from service.bench.processes import running
from tests.support.fakes import FakeDetector


def test_the_bare_rate_is_of_the_detector_at_its_best_batch() -> None:
    detector = FakeDetector(seconds=0.01)
    detector.best_batch_size = 4
    rate = bare_rate(detector, jpeg((32, 32)), 0.3)
    assert {len(batch) for batch in detector.batches} == {4}
    assert 40 < rate <= 400  # 4 each 10 ms, or later on a busy machine


def test_a_server_process_is_measured_and_its_batches_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCNN_API_KEYS", "a-key-of-the-environment-that-does-not-count")
    with running("stand-in", batch_size=4, batch_s=0.05) as url:
        run = load(url, [jpeg((48, 64)), jpeg((64, 48))], 8, 1.0)
        assert run["failed"] == 0
        assert max(map(int, run["batch_sizes"])) > 1
        with pytest.raises(BenchError, match="failed"):
            load(url, [b"no image"], 1, 1.0)
    with pytest.raises(httpx.TransportError):  # it has ended with the block
        httpx.get(f"{url}/labels", timeout=5)
