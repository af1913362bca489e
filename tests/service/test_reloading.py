"""Another model without downtime: what serves changes between two batches, and a failure changes nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import re
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from model.weights.categories import Categories
from model.weights.checkpoints import WeightsError
from service.app import create_app
from service.devices.background import works_in_background
from service.devices.detector import Detections
from service.devices.gpus import DetectorError
from service.lifecycle import Service
from service.reloading import Reloader
from service.settings import Settings
from tests.support.fakes import FakeDetector, FakeGPU, red_png

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[FakeDetector, FakeGPU], ids=["one in flight", "two in flight"])
def fake(request: pytest.FixtureRequest) -> Any:
    """The class of the detectors."""
    return request.param


class Weights:
    """What `--weights` names, for a service of fake detectors: each version finds its own classes at its own places.

    Args:
        kind: of the detectors.
    """

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self.version = "a"
        self.fault: Exception | None = None
        self.loaded: list[Any] = []
        self.asked: list[Settings] = []
        self.service: Service  # once it serves

    def load(self, settings: Settings) -> list[Any]:
        self.asked.append(settings)
        if self.fault is not None:
            raise self.fault
        made, version = self._kind(), self.version
        made.info = dataclasses.replace(
            made.info, version=version * 12, categories=Categories.of_objects([f"{version}{n}" for n in range(4)])
        )
        made.expected = lambda red: Detections(
            boxes=np.array([[ord(version), red, ord(version) + 4, red + 9]], dtype=np.float32),
            labels=np.array([2]),
            scores=np.array([0.9], dtype=np.float32),
        )
        self.loaded.append(made)
        return [made]


@asynccontextmanager
async def reloadable(
    source: Weights, *, memory: int | None = None, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service whose weights are `source`, on a host with so many bytes of memory left."""
    app = create_app(Settings(enable_reload=True, **settings), load=source.load)
    service = source.service = app.state.service
    service._reloader = Reloader(
        service, load=source.load, settings=service.settings, metrics=service.metrics, memory=lambda: memory
    )
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client,
        asyncio.timeout(60),
    ):
        await service.until_loaded()
        yield client


def version_of(answer: dict[str, Any], red: int) -> str:
    """The version that an answer is of, in all its parts."""
    version = str(answer["model"]["version"])[0]
    assert answer["model"]["version"] == version * 12
    assert answer["label_names"] == [f"{version}1"]
    assert answer["boxes"] == [[ord(version), red, ord(version) + 4, red + 9]]
    return version


async def test_every_answer_is_of_one_version_while_weights_are_reloaded(fake: Any) -> None:
    weights = Weights(fake)
    seen: list[str] = []
    async with reloadable(weights, max_batch_size=4) as client:
        ended = asyncio.Event()

        async def ask(number: int) -> None:
            red = number % 200
            answer = await client.post("/detect", content=red_png(red))
            assert answer.status_code == 200, answer.text
            seen.append(version_of(answer.json(), red))

        async def callers() -> None:
            async with asyncio.TaskGroup() as group:
                for number in range(100_000):
                    if ended.is_set():
                        return
                    group.create_task(ask(number))
                    await asyncio.sleep(0.005)

        calling = asyncio.create_task(callers())
        for version in "babab":
            weights.version = version
            answer = await client.post("/-/reload")
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"]["version"] == version * 12
            await ask(7)
            assert seen[-1] == version
            assert (await client.get("/healthz")).json()["model"]["version"] == version * 12
            assert (await client.get("/labels")).json()["labels"][0]["name"] == f"{version}0"
            await asyncio.sleep(0.05)
        ended.set()
        await calling
        metrics = (await client.get("/metrics")).text
    assert set(seen) == {"a", "b"}
    assert 'frcnn_reloads_total{result="ok"} 5.0' in metrics
    assert metrics.count("frcnn_model_info{") == 1
    assert f'weights_version="{"b" * 12}"' in metrics


async def test_pictures_that_wait_are_answered_by_the_new_model(fake: Any) -> None:
    weights = Weights(fake)
    async with reloadable(weights, max_batch_size=1) as client:
        old = weights.loaded[0]
        old.gate.clear()
        callers = [asyncio.create_task(client.post("/detect", content=red_png(red))) for red in range(1, 6)]
        while not old.started.is_set():
            await asyncio.sleep(0.01)
        weights.version = "b"
        assert (await client.post("/-/reload")).status_code == 200
        old.gate.set()
        versions = [version_of((await caller).json(), red) for red, caller in enumerate(callers, start=1)]
        assert 1 <= versions.count("a") <= 2  # what was in flight
        assert set(versions) == {"a", "b"}


async def test_a_picture_in_tiles_is_answered_by_one_model(fake: Any) -> None:
    weights = Weights(fake)
    async with reloadable(weights, max_batch_size=1) as client:
        old = weights.loaded[0]
        old.gate.clear()
        caller = asyncio.create_task(client.post("/detect?tile=64&tile_overlap=0", content=red_png(1, (64, 256))))
        while weights.service.images_in_flight < 5 or not old.started.is_set():
            await asyncio.sleep(0.01)
        weights.version = "b"
        assert (await client.post("/-/reload")).status_code == 200
        old.gate.set()
        answer = (await caller).json()
    assert answer["model"]["version"] == "b" * 12
    assert set(answer["label_names"]) == {"b1"}
    assert {(box[0] - ord("b")) % 64 for box in answer["boxes"]} == {0}  # with one of "a" there would be 63
    assert len(weights.loaded[-1].batches) >= 5  # each part, also the one that "a" had answered


async def test_labels_are_those_of_the_model_that_answers(fake: Any) -> None:
    weights = Weights(fake)
    async with reloadable(weights, max_batch_size=1) as client:
        old = weights.loaded[0]
        old.gate.clear()
        caller = asyncio.create_task(client.post("/detect", content=red_png(1)))
        ids = asyncio.create_task(client.post("/detect?labels=2", content=red_png(2)))
        names = asyncio.create_task(client.post("/detect?labels=a1", content=red_png(3)))
        while weights.service.images_in_flight < 3:
            await asyncio.sleep(0.01)
        weights.version = "b"
        assert (await client.post("/-/reload")).status_code == 200
        old.gate.set()
        assert (await caller).status_code == 200
        for answer, red in ((await ids, 2), (await names, 3)):
            if answer.status_code == 200:
                version_of(answer.json(), red)
            else:  # the class of the old model is none of the new one's
                assert (red, answer.status_code) == (3, 422)
                assert "b0" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("fault", "code", "result", "told"),
    [
        (WeightsError("/models/w.pth is broken\nin many places"), "reload-failed", "failed", "w.pth is broken"),
        (RuntimeError("secret"), "reload-failed", "failed", "RuntimeError"),
        (torch.OutOfMemoryError("CUDA out of memory"), "reload-needs-memory", "no-memory", "with a pause"),
    ],
)
async def test_a_reload_that_fails_leaves_the_old_model_serving(
    fault: Exception, code: str, result: str, told: str, fake: Any, caplog: pytest.LogCaptureFixture
) -> None:
    weights = Weights(fake)
    async with reloadable(weights, weights="/models/w.pth") as client:
        weights.version, weights.fault = "b", fault
        answer = await client.post("/-/reload")
        assert answer.status_code == 409
        assert answer.json()["type"].endswith(code)
        assert told in answer.json()["detail"]
        assert "/models" not in answer.json()["detail"]
        assert "the weights are not replaced" in caplog.text
        assert version_of((await client.post("/detect", content=red_png(3))).json(), 3) == "a"
        assert (await client.get("/healthz")).json()["status"] == "ok"
        assert f'frcnn_reloads_total{{result="{result}"}} 1.0' in (await client.get("/metrics")).text
        weights.fault = None
        assert (await client.post("/-/reload")).status_code == 200
        assert version_of((await client.post("/detect", content=red_png(3))).json(), 3) == "b"


async def test_a_model_that_does_not_answer_is_not_switched_to(fake: Any) -> None:
    weights = Weights(fake)
    async with reloadable(weights) as client:
        weights.version = "b"
        broken = weights._kind
        weights._kind = lambda: broken(fails_on=frozenset(range(256)))
        answer = await client.post("/-/reload")
        assert answer.status_code == 409
        assert answer.json()["detail"].startswith("RuntimeError while they were made ready")
        assert version_of((await client.post("/detect", content=red_png(3))).json(), 3) == "a"


async def test_what_was_measured_at_the_start_is_not_measured_again(fake: Any) -> None:
    weights = Weights(fake)
    async with reloadable(weights) as client:
        weights.loaded[0].precision, weights.loaded[0].backend = "bf16", "openvino"
        assert (await client.post("/-/reload")).status_code == 200
    first, again = weights.asked
    assert (first.precision, first.backend, first.max_batch_size, first.device) == ("auto", "auto", "auto", "auto")
    assert (again.precision, again.backend, again.max_batch_size, again.device) == ("bf16", "openvino", 1, "cpu")


async def test_one_reload_at_a_time(fake: Any) -> None:
    weights = Weights(fake)
    async with reloadable(weights) as client:
        slow = weights._kind
        held = slow()
        held.gate.clear()
        weights._kind = lambda: held
        first = asyncio.create_task(client.post("/-/reload"))
        while not held.started.is_set():
            await asyncio.sleep(0.01)
        second = await client.post("/-/reload")
        assert (second.status_code, second.json()["detail"]) == (409, "the weights are being read already")
        held.gate.set()
        assert (await first).status_code == 200


async def test_too_little_memory_for_two_models_is_told_before_anything_is_read(fake: Any) -> None:
    weights = Weights(fake)
    async with reloadable(weights, memory=5 << 20) as client:
        answer = await client.post("/-/reload")
        assert answer.json()["type"].endswith("reload-needs-memory")
        assert "a second model needs 1024 MiB, and 5 are left: ask for a reload with a pause" in answer.json()["detail"]
        assert len(weights.asked) == 1
        weights.version = "b"
        assert (await client.post("/-/reload?pause=true")).json()["model"]["version"] == "b" * 12


async def test_a_pause_answers_what_was_accepted_and_rejects_what_comes(fake: Any) -> None:
    weights = Weights(fake)
    async with reloadable(weights) as client:
        old = weights.loaded[0]
        old.gate.clear()
        accepted = asyncio.create_task(client.post("/detect", content=red_png(3)))
        while not old.started.is_set():
            await asyncio.sleep(0.01)
        weights.version = "b"
        reload = asyncio.create_task(client.post("/-/reload?pause=true"))
        while (await client.get("/healthz")).status_code == 200:
            await asyncio.sleep(0.01)
        rejected = await client.post("/detect", content=red_png(4))
        assert (rejected.status_code, rejected.headers["retry-after"]) == (503, "5")
        assert len(weights.loaded) == 1  # the old one is still there
        gone = weakref.ref(old)
        weights.loaded.clear()
        old.gate.set()
        del old
        assert version_of((await accepted).json(), 3) == "a"
        assert (await reload).json()["model"]["version"] == "b" * 12
        gc.collect()
        assert gone() is None
        assert version_of((await client.post("/detect", content=red_png(5))).json(), 5) == "b"


async def test_a_pause_without_a_new_model_at_its_end_ends_the_service(fake: Any) -> None:
    weights, ends = Weights(fake), []
    async with reloadable(weights) as client:
        weights.service._on_fatal_error = lambda: ends.append(1)
        weights.fault = WeightsError("it is broken")
        assert (await client.post("/-/reload?pause=1")).status_code == 409
        health = await client.get("/healthz")
        assert (health.status_code, health.json()["detail"]) == (503, "it is broken")
    assert ends == [1]


async def test_the_old_model_is_let_go_without_the_collector(fake: Any) -> None:
    weights = Weights(fake)
    async with reloadable(weights) as client:
        assert (await client.post("/detect", content=red_png(1))).status_code == 200
        gone = weakref.ref(weights.loaded.pop())
        gc.collect()
        gc.disable()
        try:
            assert (await client.post("/-/reload")).status_code == 200
            assert (await client.post("/detect", content=red_png(1))).status_code == 200
            assert gone() is None
        finally:
            gc.enable()


class Uncalibrated(Weights):
    """The same in int8, which is calibrated when `gate` is set; bf16 stands in for it until then."""

    def __init__(self) -> None:
        super().__init__(FakeDetector)
        self.is_kept = False  # what calibration finds
        self.begun, self.gate = threading.Event(), threading.Event()
        self.failure: Exception | None = None  # of calibration
        self.found = "int8"  # what the settings come to

    def load(self, settings: Settings) -> list[Any]:
        is_asked = settings.precision != "bf16"
        if is_asked and settings.calibrate_first and not self.is_kept:
            self.begun.set()
            assert self.gate.wait(20)
            if self.failure is not None:
                self.asked.append(settings)
                raise self.failure
        [made] = super().load(settings)
        if is_asked and (settings.calibrate_first or self.is_kept):
            made.precision, made.backend = self.found, "openvino"
        else:
            made.precision, made.is_interim = "bf16", is_asked
        return [made]


async def health_of(client: httpx.AsyncClient) -> tuple[int, str, str]:
    answer = await client.get("/healthz")
    return answer.status_code, answer.json()["precision"], answer.json()["detail"]


async def until_it_changes(client: httpx.AsyncClient) -> tuple[int, str, str]:
    while "is being calibrated" in (now := await health_of(client))[2]:
        await asyncio.sleep(0.01)
    return now


async def test_another_precision_answers_until_int8_is_calibrated(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    weights = Uncalibrated()
    async with reloadable(weights, precision="int8") as client:
        meanwhile = (200, "bf16", "int8 is being calibrated; bf16 answers meanwhile")
        assert await health_of(client) == meanwhile
        assert await asyncio.to_thread(weights.begun.wait, 20)
        assert version_of((await client.post("/detect", content=red_png(3))).json(), 3) == "a"
        assert 'precision="bf16"' in (await client.get("/metrics")).text
        again = await client.post("/-/reload")
        assert (again.status_code, again.json()["detail"]) == (
            409,
            "int8 is being calibrated: reload the weights when it is done",
        )
        assert await health_of(client) == meanwhile
        old = weights.loaded[0]
        old.gate.clear()
        old.started.clear()
        accepted = asyncio.create_task(client.post("/detect", content=red_png(4)))
        while not old.started.is_set():
            await asyncio.sleep(0.01)
        weights.gate.set()
        assert await until_it_changes(client) == (200, "int8", "the model is loaded and its device answers")
        old.gate.set()
        assert version_of((await accepted).json(), 4) == "a"
        answered = len(weights.loaded[1].batches)
        assert version_of((await client.post("/detect", content=red_png(5))).json(), 5) == "a"
        assert len(weights.loaded[1].batches) == answered + 1
        metrics = (await client.get("/metrics")).text
        assert 'precision="int8"' in metrics
        assert 'precision="bf16"' not in metrics
        assert "int8 is being calibrated; bf16 answers meanwhile" in caplog.text
        assert "int8 serves after" in caplog.text
        assert (await client.post("/-/reload")).status_code == 200
        assert (await health_of(client))[1] == "int8"
    _, calibrating, reloading = weights.asked
    assert (calibrating.precision, calibrating.max_batch_size, calibrating.device) == ("int8", 1, "cpu")
    assert (reloading.precision, reloading.backend, reloading.calibrate_first) == ("int8", "openvino", True)


async def test_int8_answers_at_once_where_its_ranges_are_kept() -> None:
    weights = Uncalibrated()
    weights.is_kept = True
    async with reloadable(weights, precision="int8") as client:
        assert await health_of(client) == (200, "int8", "the model is loaded and its device answers")
        assert len(weights.asked) == 1


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (DetectorError("int8 fails on these weights: it is odd\nsomewhere"), "int8 fails on these weights: it is odd"),
        (RuntimeError("secret"), "RuntimeError while they were made ready; the log has the trace"),
        (torch.OutOfMemoryError("out of memory"), "memory ran out"),
    ],
)
async def test_where_int8_cannot_be_calibrated_the_other_precision_serves_on_and_says_why(
    failure: Exception, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    weights = Uncalibrated()
    weights.failure = failure
    weights.gate.set()
    async with reloadable(weights, precision="int8") as client:
        assert await until_it_changes(client) == (200, "bf16", f"int8 is not used, and bf16 answers: {told}")
        assert f"int8 is not used, and bf16 answers: {told}" in caplog.text
        assert version_of((await client.post("/detect", content=red_png(3))).json(), 3) == "a"
        weights.failure, weights.version = None, "b"
        assert (await client.post("/-/reload")).status_code == 200  # in bf16, and then int8 is tried again
        assert (await until_it_changes(client))[1:] == ("int8", "the model is loaded and its device answers")
        assert version_of((await client.post("/detect", content=red_png(3))).json(), 3) == "b"
    assert [settings.precision for settings in weights.asked] == ["int8", "int8", "bf16", "int8"]


async def test_int8_is_not_calibrated_where_memory_is_short() -> None:
    weights = Uncalibrated()
    async with reloadable(weights, memory=5 << 20, precision="int8") as client:
        status, precision, detail = await until_it_changes(client)
        assert (status, precision) == (200, "bf16")
        assert re.fullmatch(r"int8 is not used, .*: calibration needs \d+ MiB, and 5 are left", detail)
        assert len(weights.asked) == 1


async def test_weights_that_change_while_int8_is_calibrated_are_not_served_unasked() -> None:
    weights = Uncalibrated()
    async with reloadable(weights, precision="int8") as client:
        weights.version = "b"
        weights.gate.set()
        _, precision, detail = await until_it_changes(client)
        assert precision == "bf16"
        assert "the file of weights has changed since it was read; reload it" in detail
        assert version_of((await client.post("/detect", content=red_png(3))).json(), 3) == "a"


async def test_auto_keeps_what_it_has_where_int8_is_no_better() -> None:
    weights = Uncalibrated()
    weights.found = "fp32"
    weights.gate.set()
    async with reloadable(weights, precision="auto") as client:
        assert await until_it_changes(client) == (200, "bf16", "the model is loaded and its device answers")
        assert version_of((await client.post("/detect", content=red_png(3))).json(), 3) == "a"
        assert len(weights.asked) == 2


async def test_a_device_that_is_lost_comes_back_in_the_precision_that_serves() -> None:
    weights = Uncalibrated()
    async with reloadable(weights, precision="int8") as client:
        reloader = weights.service._reloader
        assert reloader.for_device("cpu").precision == "bf16"
        weights.gate.set()
        await until_it_changes(client)
        assert reloader.for_device("cpu").precision == "int8"
    assert [settings.precision for settings in weights.asked if settings.calibrate_first].count("bf16") == 1


async def test_the_end_does_not_wait_for_calibration() -> None:
    weights = Uncalibrated()
    async with reloadable(weights, precision="int8") as client:
        assert await asyncio.to_thread(weights.begun.wait, 20)
        assert (await health_of(client))[1] == "bf16"
    assert works_in_background()
    assert {detector.precision for detector in weights.service.detectors} == {"bf16"}
    weights.gate.set()
    async with asyncio.timeout(20):
        while works_in_background():
            await asyncio.sleep(0.01)
    assert {detector.precision for detector in weights.service.detectors} == {"bf16"}
