"""The protocol over HTTP, without and with the client that people use for it."""

from __future__ import annotations

import base64
import dataclasses
import io
import threading
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.app import create_app
from service.settings import MODELS, Settings
from tests.support.fakes import FakeDetector, red_png
from tests.support.servers import live, serving

MODEL = "/v2/models/fasterrcnn_resnet50_fpn"
VERSIONED = f"{MODEL}/versions/1"


def asking(data: bytes, **members: Any) -> dict[str, Any]:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(data).decode()]}
    return {"inputs": [tensor], **members}


def outputs(response: httpx.Response) -> dict[str, Any]:
    return {one["name"]: one["data"] for one in response.json()["outputs"]}


@pytest.mark.anyio
async def test_the_model_has_its_own_name() -> None:
    detector = FakeDetector()
    detector.info = dataclasses.replace(detector.info, name="fasterrcnn_resnet50_fpn_v2")
    async with serving(detector) as client:
        path = f"{MODEL}_v2"
        assert (await client.get(path)).json()["name"] == "fasterrcnn_resnet50_fpn_v2"
        assert (await client.get(f"{path}/ready")).json() == {"name": "fasterrcnn_resnet50_fpn_v2", "ready": True}
        answer = await client.post(f"{path}/infer", json=asking(red_png(7)))
        assert answer.json()["model_name"] == "fasterrcnn_resnet50_fpn_v2"
        rejected = await client.post(f"{MODEL}/infer", json=asking(red_png(7)))
        assert rejected.status_code == 404
        assert "there is fasterrcnn_resnet50_fpn_v2, 1" in rejected.json()["error"]
        assert (await client.post("/detect", content=red_png(7))).json()["model"][
            "name"
        ] == "fasterrcnn_resnet50_fpn_v2"
        assert (await client.get("/healthz")).json()["model"]["name"] == "fasterrcnn_resnet50_fpn_v2"


@pytest.mark.anyio
async def test_until_the_model_is_loaded_each_name_may_be_its_own() -> None:
    may_load = threading.Event()

    def load(_: Settings) -> list[Any]:
        assert may_load.wait(20)
        return [FakeDetector()]

    app = create_app(Settings(), load=load)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        for name in MODELS:
            answer = await client.get(f"/v2/models/{name}/ready")
            assert (answer.status_code, answer.json()) == (503, {"name": name, "ready": False})
        assert (await client.get("/v2/models/other/ready")).status_code == 404
        may_load.set()
        await app.state.service.until_loaded()
        assert (await client.get(f"{MODEL}_v2/ready")).status_code == 404


@pytest.mark.anyio
async def test_server_and_model_tell_what_they_are() -> None:
    async with serving(FakeDetector()) as client:
        assert (await client.get("/v2/health/live")).json() == {"live": True}
        assert (await client.get("/v2/health/ready")).json() == {"ready": True}
        assert (await client.head("/v2/health/ready")).status_code == 200
        server = (await client.get("/v2")).json()
        assert (server["name"], server["extensions"]) == ("faster-rcnn-service", ["binary_tensor_data"])
        for path in (MODEL, VERSIONED):
            model = (await client.get(path)).json()
            assert (model["name"], model["versions"]) == ("fasterrcnn_resnet50_fpn", ["1"])
            assert [one["name"] for one in model["inputs"]] == ["image"]
            assert [(one["name"], one["datatype"], one["shape"]) for one in model["outputs"]] == [
                ("boxes", "FP32", [-1, 4]),
                ("labels", "INT64", [-1]),
                ("scores", "FP32", [-1]),
            ]
            assert (await client.get(f"{path}/ready")).json() == {"name": model["name"], "ready": True}


@pytest.mark.anyio
@pytest.mark.parametrize("path", [MODEL, VERSIONED])
async def test_an_image_gets_what_detect_gives(path: str) -> None:
    async with serving(FakeDetector()) as client:
        plain = (await client.post("/detect", content=red_png(7))).json()
        response = await client.post(f"{path}/infer", json=asking(red_png(7), id="x"))
        assert response.status_code == 200
        assert "inference;dur=" in response.headers["server-timing"]
        found = outputs(response)
        assert np.allclose(np.reshape(found["boxes"], (-1, 4)), plain["boxes"], atol=1e-4)
        assert found["labels"] == plain["labels"]
        assert np.allclose(found["scores"], plain["scores"], atol=1e-6)


@pytest.mark.anyio
async def test_parameters_choose_as_in_detect() -> None:
    chosen: list[tuple[dict[str, Any], list[int]]] = [
        ({"score_threshold": 0.5}, [1]),
        ({"max_detections": 1}, [1]),
        ({"labels": "dog"}, [4]),
        ({"score_threshold": "0.5,dog:0.2"}, [1, 4]),
        ({"iou_threshold": 0.1, "class_agnostic": True}, [1]),
        ({"labels": ["dog", 1]}, [1, 4]),
        ({"priority": 3, "unknown": "left alone"}, [1, 4]),
    ]
    wrong: list[dict[str, Any]] = [
        {"score_threshold": 2},
        {"score_threshold": 10**400},
        {"score_threshold": "dog:2"},
        {"score_threshold": [0.5]},
        {"iou_threshold": 0.6},
        {"class_agnostic": "perhaps"},
        {"max_detections": 10**400},
        {"labels": "unicorn"},
        {"labels": 3},
        {"labels": [None] * 1000},
        {"labels": [""] * 20_000},
        {"labels": "dog," * 20_000 + "dog"},
        {"timeout": "soon"},
        {"timeout": -1},
    ]
    async with serving(FakeDetector()) as client:
        for parameters, labels in chosen:
            response = await client.post(f"{MODEL}/infer", json=asking(red_png(7), parameters=parameters))
            assert outputs(response)["labels"] == labels
        for parameters in wrong:
            response = await client.post(f"{MODEL}/infer", json=asking(red_png(7), parameters=parameters))
            assert response.status_code == 400, parameters
            assert response.json()["error"].startswith("parameters: ")
            assert len(response.content) < 1000


@pytest.mark.anyio
async def test_errors_are_as_the_protocol_has_them() -> None:
    good = asking(red_png(7))
    async with serving(FakeDetector(fails_on=frozenset({13})), max_body_bytes=5000, max_image_pixels=2000) as client:
        cases = [
            (400, await client.post(f"{MODEL}/infer", content=b"{")),
            (400, await client.post(f"{MODEL}/infer", json=asking(b"no image"))),
            (404, await client.post("/v2/models/yolo/infer", json=good)),
            (404, await client.get(f"{MODEL}/versions/2")),
            (404, await client.get("/v2/nothing")),
            (405, await client.get(f"{MODEL}/infer")),
            (413, await client.post(f"{MODEL}/infer", json=asking(bytes(200_000)))),
            (413, await client.post(f"{MODEL}/infer", json=asking(red_png(7, (100, 100))))),
            (415, await client.post(f"{MODEL}/infer", json=asking(b"%PDF-1.7"))),
            (415, await client.post(f"{MODEL}/infer", content=b"x", headers={"Content-Encoding": "gzip"})),
            (500, await client.post(f"{MODEL}/infer", json=asking(red_png(13)))),
        ]
        for status, response in cases:
            assert response.status_code == status, response.text
            assert list(response.json()) == ["error"]
            assert isinstance(response.json()["error"], str)
        pixels = {"name": "image", "datatype": "UINT8", "shape": [50, 50, 3], "data": [0] * 7500}
        response = await client.post(f"{MODEL}/infer", json={"inputs": [pixels]})
        assert response.status_code == 413
        assert "50 x 50 pixels" in response.json()["error"]


@pytest.mark.anyio
async def test_budget_and_deadline_hold_here_too() -> None:
    detector = FakeDetector(seconds=0.3)
    async with serving(detector, queue_capacity=1) as client:
        late = await client.post(f"{MODEL}/infer", json=asking(red_png(7), parameters={"timeout": 50_000}))
        assert late.status_code == 504
        assert "error" in late.json()
        late = await client.post(f"{MODEL}/infer", json=asking(red_png(7)), headers={"X-Request-Timeout-Ms": "50"})
        assert late.status_code == 504


def test_a_full_queue_and_a_draining_server_are_told() -> None:
    from concurrent.futures import ThreadPoolExecutor

    detector = FakeDetector()
    detector.gate.clear()
    with live(detector, queue_capacity=1) as url, ThreadPoolExecutor(1) as callers:
        first = callers.submit(httpx.post, f"{url}/detect", content=red_png(1), timeout=30)
        assert detector.started.wait(20)
        rejected = httpx.post(f"{url}{MODEL}/infer", json=asking(red_png(7)))
        detector.gate.set()
        assert first.result().status_code == 200
    assert rejected.status_code == 429
    assert int(rejected.headers["retry-after"]) >= 1
    assert "error" in rejected.json()


@pytest.mark.anyio
async def test_a_model_that_loads_is_alive_and_not_ready() -> None:
    from service.app import create_app
    from service.settings import Settings

    app = create_app(Settings(), load=lambda _: [FakeDetector()])  # its lifespan is not entered: it loads for ever
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/v2/health/live")).status_code == 200
        for path in ("/v2/health/ready", f"{MODEL}/ready"):
            response = await client.get(path)
            assert (response.status_code, response.json()["ready"]) == (503, False)
        assert (await client.get(MODEL)).status_code == 200
        response = await client.post(f"{MODEL}/infer", json=asking(red_png(7)))
        assert response.status_code == 503
        assert "retry-after" in response.headers
        assert list(response.json()) == ["error"]


# The client of NVIDIA's Triton, as it is on PyPI.


@pytest.fixture
def triton() -> ModuleType:
    client: ModuleType = pytest.importorskip("tritonclient.http", reason="pip install 'tritonclient[http]'")
    return client


def image_inputs(triton: ModuleType, file: bytes) -> dict[str, Any]:
    """The same picture in every form that the client can send."""
    with Image.open(io.BytesIO(file)) as image:
        pixels = np.asarray(image.convert("RGB"))
    as_file = np.array([file], dtype=np.object_)
    as_base64 = np.array([base64.b64encode(file)], dtype=np.object_)
    return {
        "BYTES, binary": triton.InferInput("image", [1], "BYTES").set_data_from_numpy(as_file),
        "BYTES, JSON": triton.InferInput("image", [1], "BYTES").set_data_from_numpy(as_base64, binary_data=False),
        "UINT8, binary": triton.InferInput("image", list(pixels.shape), "UINT8").set_data_from_numpy(pixels),
        "UINT8, JSON": triton.InferInput("image", list(pixels.shape), "UINT8").set_data_from_numpy(
            pixels, binary_data=False
        ),
    }


def test_tritonclient_gets_what_detect_gives(triton: ModuleType) -> None:
    file = red_png(9, (40, 64))
    with live(FakeDetector()) as url:
        plain = httpx.post(f"{url}/detect", content=file).json()
        client = triton.InferenceServerClient(url.removeprefix("http://"))
        try:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("fasterrcnn_resnet50_fpn")
            assert client.is_model_ready("fasterrcnn_resnet50_fpn", "1")
            assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
            assert len(client.get_model_metadata("fasterrcnn_resnet50_fpn")["outputs"]) == 3
            for form, tensor in image_inputs(triton, file).items():
                for wanted in (None, True, False):
                    asked = (
                        None
                        if wanted is None
                        else [
                            triton.InferRequestedOutput(name, binary_data=wanted)
                            for name in ("scores", "boxes", "labels")
                        ]
                    )
                    result = client.infer("fasterrcnn_resnet50_fpn", [tensor], outputs=asked, request_id="r7")
                    boxes, labels, scores = (result.as_numpy(name) for name in ("boxes", "labels", "scores"))
                    assert (boxes.dtype, labels.dtype, scores.dtype) == (np.float32, np.int64, np.float32), form
                    assert np.allclose(boxes, plain["boxes"], atol=1e-4), form
                    assert labels.tolist() == plain["labels"]
                    assert np.allclose(scores, plain["scores"], atol=1e-6)
                    assert result.get_response()["id"] == "r7"
            best = client.infer("fasterrcnn_resnet50_fpn", [tensor], parameters={"score_threshold": 0.5})
            assert best.as_numpy("labels").tolist() == [1]
        finally:
            client.close()


def test_tritonclient_understands_the_errors(triton: ModuleType) -> None:
    broken = triton.InferInput("image", [1], "BYTES").set_data_from_numpy(np.array([b"no image"], dtype=np.object_))
    with live(FakeDetector()) as url:
        client = triton.InferenceServerClient(url.removeprefix("http://"))
        try:
            with pytest.raises(triton.InferenceServerException) as rejection:
                client.infer("fasterrcnn_resnet50_fpn", [broken])
            assert rejection.value.status() == "400"
            assert "not an image" in rejection.value.message()
            with pytest.raises(triton.InferenceServerException, match="there is no model 'yolo'"):
                client.get_model_metadata("yolo")
        finally:
            client.close()
