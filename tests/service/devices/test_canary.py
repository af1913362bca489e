"""A device that answers wrongly is failing like one that does not answer."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import torch

from model.build import from_checkpoint, random_checkpoint, resolve_checkpoint
from model.weights.categories import Categories
from model.weights.foreign import PREDICTOR_KEY
from service.app import create_app
from service.devices.canary import WrongAnswerError, ask, check_answer, known_picture
from service.devices.detector import Detections, Detector, ModelInfo
from service.devices.device import Device
from service.devices.model_detector import ModelDetector
from service.settings import Settings
from tests.support.fakes import FakeDetector, red_png

SMALL: dict[str, Any] = {"min_size": 96, "max_size": 128, "rpn_pre_nms_top_n_test": 100, "rpn_post_nms_top_n_test": 20}
INFO = ModelInfo("fasterrcnn_resnet50_fpn", "small", Categories.of_objects(["thing"]))


def small_detector(weights: str) -> ModelDetector:
    """A real detector for small pictures, with its known answer."""
    checkpoint = random_checkpoint() if weights == "untrained" else resolve_checkpoint(weights)
    if weights == "untrained":
        checkpoint.state_dict[PREDICTOR_KEY].mul_(0.01)  # so that no class is likely
    settings = Settings(precision="fp32", backend="torch")  # whose weights tests can reach
    detector = ModelDetector(from_checkpoint(checkpoint, **SMALL), INFO, device="cpu", settings=settings)
    detector.known_answer = ask(detector)
    return detector


@pytest.fixture(scope="module")
def detectors() -> Callable[[str], ModelDetector]:
    """`detectors("bundled")`: one for each name of weights, which tests leave as it was."""
    return functools.cache(small_detector)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights_of(detector: ModelDetector) -> dict[str, torch.Tensor]:
    """The tensors that a detector computes with, in its memory."""
    network: Any = detector._model.network
    return dict(network.state_dict())


@contextmanager
def corrupted(detector: ModelDetector, factor: float) -> Iterator[Callable[[], None]]:
    """Change the weights in the memory of a detector that serves; gives what restores them."""
    tensors = weights_of(detector)
    sound = {name: tensor.clone() for name, tensor in tensors.items()}

    def restore() -> None:
        for name, tensor in tensors.items():
            tensor.copy_(sound[name])

    for tensor in tensors.values():
        tensor.mul_(factor)
    try:
        yield restore
    finally:
        restore()


@pytest.mark.parametrize("weights", ["untrained", "bundled"])
def test_weights_that_change_in_memory_change_the_known_answer(
    weights: str, detectors: Callable[[str], ModelDetector]
) -> None:
    detector = detectors(weights)
    known = detector.known_answer
    assert known is not None
    assert (known.raw is not None) == (weights == "untrained")  # which finds nothing
    check_answer(detector, known)
    for factor in (0.9, float("nan")):
        with corrupted(detector, factor), pytest.raises(WrongAnswerError, match="have changed"):
            check_answer(detector, known)
    check_answer(detector, known)


@pytest.mark.anyio
async def test_a_device_that_is_wrong_gets_another_detector_once() -> None:
    shown, loaded = [1], []

    class Wrong(FakeDetector):
        @staticmethod
        def expected(_red: int) -> Detections:
            return FakeDetector.expected(shown[0])

    wrong = Wrong()

    def reload(_: str) -> Detector:
        loaded.append(1)
        return wrong

    device = Device(wrong, reload=reload, max_batch_size=1, hang_timeout_s=20, canary_timeout_s=20)
    assert await device.check()
    shown[0] = 9
    for _ in range(4):
        assert not await device.check()
        assert device.failure is not None
        assert device.failure.startswith("cpu answers wrongly: 1 of 2 detections")
    assert len(loaded) == 1  # with the file as it is, another one would be as wrong
    shown[0] = 1
    assert await device.check()
    assert device.failure is None
    device.close()


@pytest.mark.anyio
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "under load"])
async def test_health_tells_within_the_interval_that_weights_are_corrupt(
    busy: bool, detectors: Callable[[str], ModelDetector], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Under load after 1 s, so that the time for the answer, half of an interval, can be long.
    monkeypatch.setattr("service.batching.batcher._BUSY_INTERVALS", 0.1)
    detector = detectors("untrained")
    loaded: list[Settings] = []
    with corrupted(detector, 1.0) as restore:

        def load(settings: Settings) -> list[Detector]:
            loaded.append(settings)
            restore()  # what is on the disk is sound
            return [detector]

        app = create_app(Settings(canary_interval_s=10 if busy else 6, max_batch_size=1), load=load)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client,
            asyncio.timeout(60),
        ):
            await app.state.service.until_loaded()

            async def answered() -> int:
                return (await client.post("/detect", content=red_png(1))).status_code

            assert await answered() == 200
            for tensor in weights_of(detector).values():
                tensor.mul_(0.5)
            while (health := await client.get("/healthz")).json()["status"] == "ok":
                await (answered() if busy else asyncio.sleep(0.05))
            assert health.status_code == 503
            assert health.json()["detail"].startswith("no device answers: cpu answers wrongly: ")
            assert await answered() == 503
            assert "frcnn_ready 0.0" in (await client.get("/metrics")).text
            while (await client.get("/healthz")).json()["status"] != "ok":
                await asyncio.sleep(0.05)
            assert len(loaded) == 2
            assert await answered() == 200


def test_the_known_picture_is_the_same_every_time() -> None:
    assert known_picture() is known_picture()
    assert known_picture().shape == (3, 240, 320)
