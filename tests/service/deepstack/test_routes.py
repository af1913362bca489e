"""DeepStack's API as its clients use it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from service.wire import DEEPSTACK_PATH
from tests.support.fakes import FakeDetector, red_png
from tests.support.servers import serving

pytestmark = pytest.mark.anyio
KEY = "key-of-the-deepstack-tests"
PERSON = {"label": "person", "confidence": 0.9, "x_min": 7, "y_min": 1, "x_max": 11, "y_max": 9}
DOG = {"label": "dog", "confidence": 0.3, "x_min": 2, "y_min": 3, "x_max": 12, "y_max": 23}


async def post(client: httpx.AsyncClient, image: bytes, query: str = "", **fields: str) -> httpx.Response:
    """A form as `requests` and httpx make it: the fields, then the file."""
    return await client.post(f"{DEEPSTACK_PATH}{query}", data=fields, files={"image": image})


def check_error(response: httpx.Response, status: int, words: str) -> None:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"success", "error", "duration"}
    assert body["success"] is False
    assert words in body["error"]


@pytest.mark.parametrize(
    ("fields", "query", "predictions"),
    [
        ({}, "", [PERSON]),  # DeepStack's own default: 0.4
        ({"min_confidence": ""}, "", [PERSON]),
        ({"min_confidence": "0.3"}, "", [PERSON, DOG]),
        ({"min_confidence": "0.95"}, "", []),
        ({"min_confidence": "0.1", "api_key": ""}, "?max_detections=1", [PERSON]),
        ({"min_confidence": "0.1"}, "?labels=dog", [DOG]),
        ({"min_confidence": "0.1"}, "?score_threshold=person:0.95", [DOG]),
        ({"min_confidence": "0.5"}, "?score_threshold=0.1,dog:0.2", [PERSON]),
        ({"min_confidence": "0.1"}, "?iou_threshold=0.1&class_agnostic=true", [PERSON]),
    ],
)
async def test_predictions_are_as_deepstack_has_them(
    fields: dict[str, str],
    query: str,
    predictions: list[Any],
) -> None:
    async with serving(FakeDetector()) as client:
        response = await post(client, red_png(7), query, **fields)
    assert response.status_code == 200, response.text
    body = response.json()
    assert (body.pop("success"), body.pop("predictions")) == (True, predictions)
    assert body.pop("duration") > 0
    assert not body
    assert "inference;dur=" in response.headers["server-timing"]


async def test_errors_are_as_deepstack_has_them() -> None:
    image = red_png(7)
    async with serving(FakeDetector(fails_on=frozenset({13})), max_body_bytes=5000) as client:
        check_error(await post(client, b"no image"), 400, "not an image")
        check_error(await client.post(DEEPSTACK_PATH, files={"file": image}), 400, "no field named 'image'")
        check_error(await client.post(DEEPSTACK_PATH, files=[("image", image)] * 2), 413, "too many files")
        check_error(await post(client, bytes(100_000)), 413, "bytes")
        check_error(await post(client, image, comment="x" * 70_000), 400, "'comment' among them")
        check_error(await client.post(DEEPSTACK_PATH, content=image), 415, "multipart/form-data")
        check_error(await post(client, b"%PDF-1.7"), 415, "PDF")
        for wrong in ("2", "-1", "nan", "much"):
            check_error(await post(client, image, min_confidence=wrong), 422, "min_confidence: a threshold is a number")
        check_error(await post(client, image, "?labels=unicorn"), 422, "labels: 'unicorn'")
        check_error(await post(client, image, "?box_format=xywh"), 422, "box_format: there is no such parameter")
        check_error(await post(client, red_png(13)), 500, "")
        check_error(await client.post("/v1/vision/face", files={"image": image}), 404, "/v1/vision/face")
        check_error(await client.get(DEEPSTACK_PATH), 405, "GET")
        assert (await client.get("/healthz")).json()["images_in_flight"] == 0
        assert 'code="bad-parameter"} 6.0' in (await client.get("/metrics")).text


async def test_the_key_may_stand_in_the_form() -> None:
    image = red_png(7)
    async with serving(FakeDetector(), api_keys=f"{KEY},another-{KEY}") as client:
        for key in (KEY, f"another-{KEY}"):
            assert (await post(client, image, api_key=key)).status_code == 200
        in_head = {"Authorization": f"Bearer {KEY}"}
        for fields in (dict[str, str](), {"api_key": ""}):
            answer = await client.post(DEEPSTACK_PATH, files={"image": image}, data=fields, headers=in_head)
            assert answer.status_code == 200
        missing = await post(client, image)
        check_error(missing, 401, "'api_key', before the image")
        assert missing.headers["www-authenticate"] == 'Bearer realm="faster-rcnn-service"'
        wrong = await post(client, image, api_key="wrong")
        check_error(wrong, 401, "not one of those")
        assert "invalid_token" in wrong.headers["www-authenticate"]
        check_error(await client.post(DEEPSTACK_PATH, data={"api_key": "wrong"}, files={"x": b""}), 401, "not one")
        check_error(await client.get(DEEPSTACK_PATH), 401, "API key")
        wrong_head = {"X-API-Key": "wrong"}
        answer = await client.post(DEEPSTACK_PATH, files={"image": image}, data={"api_key": KEY}, headers=wrong_head)
        check_error(answer, 401, "not one of those")
        check_error(await client.post("/v1/vision/face", data={"api_key": KEY}), 401, "API key")
        # The answer to an unknown class names those that there are.
        check_error(await post(client, image, "?labels=x", api_key="wrong"), 401, "not one of those")
        check_error(await post(client, image, "?labels=x", api_key=KEY), 422, "person")


async def test_nothing_is_read_of_an_image_without_its_key() -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    sent = 0

    async def body() -> Any:
        nonlocal sent
        yield head
        for _ in range(1000):
            sent += 1
            yield bytes(1000)

    async with serving(FakeDetector(), api_keys=KEY) as client:
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        check_error(await client.post(DEEPSTACK_PATH, content=body(), headers=headers), 401, "before the image")
    assert sent < 10


async def test_budget_deadline_and_metrics_are_those_of_detect() -> None:
    detector = FakeDetector()
    detector.gate.clear()
    async with serving(detector, queue_capacity=1) as client:
        first = asyncio.create_task(post(client, red_png(7)))
        while (await client.get("/healthz")).json()["images_in_flight"] < 1:
            await asyncio.sleep(0.001)
        full = await post(client, red_png(8))
        check_error(full, 429, "images are being answered")
        assert int(full.headers["retry-after"]) >= 1
        detector.gate.set()
        assert (await first).status_code == 200
        detector.gate.clear()
        late = await client.post(
            DEEPSTACK_PATH, files={"image": red_png(7)}, headers={"X-Request-Timeout-Ms": "30", "X-Priority": "high"}
        )
        detector.gate.set()
        check_error(late, 504, "deadline")
        counted = (await client.get("/metrics")).text
    for status in (200, 429, 504):
        assert f'frcnn_requests_total{{route="{DEEPSTACK_PATH}",status="{status}"}} 1.0' in counted
