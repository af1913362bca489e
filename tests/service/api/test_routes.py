from __future__ import annotations

import asyncio
import base64
import io
import threading
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.openmetrics import parser as openmetrics

from service.telemetry.metrics import Metrics
from tests.support.fakes import FakeDetector, red_png
from tests.support.servers import serving

pytestmark = pytest.mark.anyio

DETECTED = {
    "boxes": [[7.0, 1.0, 11.0, 9.0], [2.0, 3.0, 12.0, 23.0]],
    "labels": [1, 4],
    "scores": [0.9, 0.3],
    "label_names": ["person", "dog"],
    "image": {"width": 40, "height": 32},
    "model": {"name": "fasterrcnn_resnet50_fpn", "weights": "fake", "version": "fa4e01234567"},
}


def check_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert set(body) == {"type", "title", "status", "detail", "request_id"}
    assert body["type"].endswith(f":{code}")
    assert body["status"] == status
    assert body["request_id"] == response.headers["x-request-id"]
    return body


async def test_three_ways_to_send_an_image_get_one_answer() -> None:
    data = red_png(7, (32, 40))
    async with serving(FakeDetector()) as client:
        answers = [
            await client.post("/detect", content=data, headers={"Content-Type": "image/png"}),
            await client.post("/detect", content=data, headers={"Content-Type": "application/octet-stream"}),
            await client.post("/detect", content=data),
            await client.post("/detect", files={"file": ("x.png", data)}),
            await client.post("/detect", json={"image": base64.b64encode(data).decode()}),
            await client.post("/detect", json={"image": base64.encodebytes(data).decode()}),
            await client.post("/detect", json={"image": "data:image/png;base64," + base64.b64encode(data).decode()}),
            await client.post("/detect", json={"image": " DATA:image/png;base64," + base64.b64encode(data).decode()}),
        ]
    for answer in answers:
        assert answer.status_code == 200
        assert answer.json() == DETECTED


async def test_server_timing_tells_the_stages() -> None:
    async with serving(FakeDetector(seconds=0.02)) as client:
        timing = (await client.post("/detect", content=red_png(1))).headers["server-timing"]
    stages = dict(part.strip().split(";", 1) for part in timing.split(","))
    assert list(stages) == ["decode", "queue", "inference", "batch"]
    assert float(stages["inference"].removeprefix("dur=")) >= 20
    assert stages["batch"] == 'desc="1"'


@pytest.mark.parametrize(
    ("query", "boxes"),
    [
        ({"score_threshold": 0.5}, [[7, 1, 11, 9]]),
        ({"score_threshold": 0.9}, [[7, 1, 11, 9]]),
        ({"max_detections": 1}, [[7, 1, 11, 9]]),
        ({"labels": "dog"}, [[2, 3, 12, 23]]),
        ({"labels": "Dog, 1"}, [[7, 1, 11, 9], [2, 3, 12, 23]]),
        ({"labels": "car"}, []),
        ({"labels": ""}, []),
        ({"labels": ["dog", "1"]}, [[7, 1, 11, 9], [2, 3, 12, 23]]),
        ({"labels": "#4"}, [[2, 3, 12, 23]]),
        ({"labels": "dog", "max_detections": 1}, [[2, 3, 12, 23]]),
        ({"score_threshold": "0.5,dog:0.3"}, [[7, 1, 11, 9], [2, 3, 12, 23]]),
        ({"score_threshold": "person:0.95,4:0.2"}, [[2, 3, 12, 23]]),
        ({"iou_threshold": 0.0}, [[7, 1, 11, 9], [2, 3, 12, 23]]),
        ({"iou_threshold": 0.1, "class_agnostic": "true"}, [[7, 1, 11, 9]]),
        ({"class_agnostic": "true"}, [[7, 1, 11, 9], [2, 3, 12, 23]]),
        ({"box_format": "xywh"}, [[7, 1, 4, 8], [2, 3, 10, 20]]),
        ({"box_format": "cxcywh"}, [[9, 5, 4, 8], [7, 13, 10, 20]]),
        ({"normalized": "true", "max_detections": 1}, [[7 / 40, 1 / 32, 11 / 40, 9 / 32]]),
        ({"normalized": "true", "box_format": "xywh", "max_detections": 1}, [[7 / 40, 1 / 32, 4 / 40, 8 / 32]]),
    ],
)
async def test_the_query_shapes_the_answer(query: dict[str, Any], boxes: list[list[float]]) -> None:
    async with serving(FakeDetector()) as client:
        body = (await client.post("/detect", params=query, content=red_png(7, (32, 40)))).json()
    np.testing.assert_allclose(np.reshape(body["boxes"], (-1, 4)), np.reshape(boxes, (-1, 4)), atol=1e-6)
    assert len(body["labels"]) == len(body["scores"]) == len(body["label_names"]) == len(boxes)


@pytest.mark.parametrize(
    "query",
    [
        {"score_threshold": "1.5"},
        {"score_threshold": "nan"},
        {"score_threshold": "0.5,unicorn:0.8"},
        {"score_threshold": "0.5,dog:2"},
        {"iou_threshold": "-0.1"},
        {"iou_threshold": "0.51"},
        {"class_agnostic": "perhaps"},
        {"max_detections": "0"},
        {"max_detections": "101"},
        {"labels": "unicorn"},
        {"labels": "0"},
        {"box_format": "yxyx"},
        {"normalized": "perhaps"},
        {"threshold": "0.5"},
        {"max_detections": ["1", "2"]},
        {"labels": ["1", "unicorn"]},
        {"labels": "a" * 16_385},
    ],
)
async def test_a_bad_parameter_is_named(query: dict[str, Any]) -> None:
    detector = FakeDetector()
    async with serving(detector) as client:
        response = await client.post("/detect", params=query, content=red_png(7))
    body = check_problem(response, 422, "bad-parameter")
    assert next(iter(query)) in body["detail"]
    assert not detector.batches


@pytest.mark.parametrize(
    ("request_arguments", "status", "code"),
    [
        ({"content": b"not an image"}, 400, "broken-image"),
        ({"content": b""}, 400, "broken-image"),
        ({"content": b"%PDF-1.7"}, 415, "unsupported-type"),
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "unsupported-type"),
        ({"data": {"file": "text"}}, 415, "unsupported-type"),
        ({"files": {"file": (None, b"text")}}, 400, "broken-image"),
        ({"files": {"picture": b"x"}}, 400, "bad-request"),
        ({"files": {"file": b""}}, 400, "broken-image"),
        ({"files": [("file", b"x"), ("file", b"y")]}, 400, "bad-request"),
        ({"files": [("file", b"x")] * 9}, 413, "too-large"),
        ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "bad-request"),
        ({"content": b"--y\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 400, "bad-request"),
        (
            {"content": b"--x", "headers": {"Content-Type": "multipart/form-data; boundary=x; charset=undefined"}},
            400,
            "bad-request",
        ),
        (
            {"content": b'{"image": [' + b"[]," * 100_000 + b"1]}", "headers": {"Content-Type": "application/json"}},
            400,
            "bad-request",
        ),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "bad-request"),
        ({"content": b"\xff\xfe", "headers": {"Content-Type": "application/json"}}, 400, "bad-request"),
        ({"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}, 400, "bad-request"),
        ({"json": []}, 400, "bad-request"),
        ({"json": {"image": 5}}, 400, "bad-request"),
        ({"json": {"image": "%%%"}}, 400, "bad-request"),
        ({"json": {"image": "é"}}, 400, "bad-request"),
        ({"json": {"image": ""}}, 400, "broken-image"),
    ],
)
async def test_a_bad_body_is_a_problem_and_nothing_runs(
    request_arguments: dict[str, Any], status: int, code: str
) -> None:
    detector = FakeDetector()
    async with serving(detector) as client:
        check_problem(await client.post("/detect", **request_arguments), status, code)
        assert not detector.batches
        assert (await client.get("/healthz")).json()["images_in_flight"] == 0
        assert (await client.post("/detect", content=red_png(7, (32, 40)))).json() == DETECTED


async def test_limits_on_bytes_and_pixels() -> None:
    async def chunks() -> Any:
        for _ in range(20):
            yield bytes(100)

    async with serving(FakeDetector(), max_body_bytes=1000, max_image_pixels=10_000) as client:
        check_problem(await client.post("/detect", content=bytes(1001)), 413, "too-large")
        check_problem(await client.post("/detect", content=chunks()), 413, "too-large")
        check_problem(await client.post("/detect", files={"file": bytes(100_000)}), 413, "too-large")
        check_problem(await client.post("/detect", files={"file": bytes(2000)}), 413, "too-large")
        check_problem(await client.post("/detect", json={"image": "A" * 2000}), 413, "too-large")
        check_problem(await client.post("/detect", content=red_png(1, (100, 101))), 413, "too-large")
        assert (await client.post("/detect", content=red_png(1, (100, 100)))).status_code == 200


async def test_a_batch_answers_each_file_in_order() -> None:
    detector = FakeDetector(fails_on=frozenset({9}))
    files = [red_png(7, (32, 40)), b"junk", red_png(8), red_png(9), bytes(3000), red_png(5, (64, 64))]
    async with serving(detector, max_body_bytes=2000, max_batch_size=4) as client:
        response = await client.post("/detect/batch", files=[("file", f) for f in files], params={"max_detections": 1})
    assert response.status_code == 200
    results = response.json()["results"]
    assert [r["boxes"][0][0] if "boxes" in r else r["status"] for r in results] == [7, 400, 8, 500, 413, 5]
    assert results[1]["type"].endswith(":broken-image")
    assert results[1]["request_id"] == response.headers["x-request-id"]
    assert results[5]["image"] == {"width": 64, "height": 64}


@pytest.mark.parametrize(
    ("request_arguments", "status"),
    [
        ({"content": b"x"}, 415),
        ({"files": {"other": b"x"}}, 400),
        ({"files": [("file", b"x")] * 4}, 413),
        ({"files": {"file": bytes(200_000)}}, 413),
    ],
)
async def test_a_batch_that_cannot_be_read_is_a_problem(request_arguments: dict[str, Any], status: int) -> None:
    async with serving(FakeDetector(), max_batch_files=3, max_batch_body_bytes=100_000) as client:
        response = await client.post("/detect/batch", **request_arguments)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("image/jpeg", "image/jpeg"),
        ("image/png", "image/png"),
        ("image/png;q=0.5, image/jpeg", "image/jpeg"),
        ("image/*", "image/jpeg"),
        ("text/html, image/png;q=0.9, */*;q=0.1", "image/png"),
        ("application/json, image/png", "application/json"),
        ("image/png;q=0, */*", "application/json"),
        ("*/*", "application/json"),
        ("image/png;q=x", "application/json"),
    ],
)
async def test_the_answer_can_be_a_picture(accept: str, media_type: str) -> None:
    async with serving(FakeDetector()) as client:
        response = await client.post("/detect", content=red_png(7, (96, 80)), headers={"Accept": accept})
    assert response.headers["content-type"] == media_type
    assert "server-timing" in response.headers
    if media_type.startswith("image/"):
        drawn = Image.open(io.BytesIO(response.content))
        assert drawn.size == (80, 96)
        assert len(np.unique(np.asarray(drawn).reshape(-1, 3), axis=0)) > 2  # more than the one colour sent


async def test_a_picture_too_long_for_a_jpeg() -> None:
    async with serving(FakeDetector()) as client:
        data = red_png(7, (2, 70_000))
        check_problem(
            await client.post("/detect", content=data, headers={"Accept": "image/jpeg"}), 422, "bad-parameter"
        )
        assert (await client.post("/detect", content=data, headers={"Accept": "image/png"})).status_code == 200


@pytest.mark.parametrize("error", [MemoryError(), OSError("encoder error -9 when writing image file")])
async def test_a_lack_of_memory_outside_decoding_is_no_fault_of_the_caller(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    data = red_png(3)
    async with serving(FakeDetector()) as client:
        with monkeypatch.context() as patch:
            patch.setattr("PIL.Image.Image.save", fail)
            answer = await client.post("/detect", content=data, headers={"Accept": "image/png"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "memory" in answer.json()["detail"]
        assert (await client.post("/detect", content=data)).status_code == 200


async def test_a_form_may_have_other_fields() -> None:
    async with serving(FakeDetector()) as client:
        form: dict[str, Any] = {"files": {"file": red_png(7, (32, 40))}, "data": {"a": "1", "b": "2", "c": "3"}}
        assert (await client.post("/detect", **form)).json() == DETECTED


@pytest.mark.parametrize("path", ["/detect", "/detect/batch"])
async def test_an_option_beside_the_image_is_rejected(path: str) -> None:
    detector = FakeDetector()
    async with serving(detector) as client:
        form: dict[str, Any] = {"files": {"file": red_png(7)}, "data": {"score_threshold": "0.9"}}
        body = check_problem(await client.post(path, **form), 422, "bad-parameter")
        assert body["detail"] == "score_threshold is taken in the address alone: /detect?score_threshold=..."
        if path == "/detect":
            document = {"image": base64.b64encode(red_png(7)).decode(), "max_detections": 1}
            check_problem(await client.post(path, json=document), 422, "bad-parameter")
    assert not detector.batches


async def test_request_ids_are_echoed_or_made() -> None:
    async with serving(FakeDetector()) as client:
        assert (await client.get("/livez", headers={"X-Request-ID": "abc-1.2"})).headers["x-request-id"] == "abc-1.2"
        made = [(await client.get("/livez", headers=h)).headers["x-request-id"] for h in ({}, {"X-Request-ID": "a b"})]
        assert made[0] != made[1]
        assert all(len(one) == 32 for one in made)
        check_problem(await client.get("/nowhere"), 404, "no-such-path")
        check_problem(await client.get("/detect"), 405, "wrong-method")
        check_problem(await client.post("/detect/"), 404, "no-such-path")


async def test_health_labels_and_metrics() -> None:
    async with serving(FakeDetector()) as client:
        health = await client.get("/healthz")
        assert health.status_code == 200
        assert health.json()["status"] == "ok"
        assert health.json()["model"] == {
            "name": "fasterrcnn_resnet50_fpn",
            "weights": "fake",
            "version": "fa4e01234567",
        }
        assert (await client.get("/livez")).status_code == (await client.get("/readyz")).status_code == 200
        for path in ("/healthz", "/livez", "/readyz"):
            assert (await client.head(path)).status_code == 200
        assert (await client.get("/labels")).json()["labels"][3] == {"id": 4, "name": "dog"}
        await client.post("/detect", content=red_png(1))
        await client.get("/nowhere/to-be-found")
        text = (await client.get("/metrics")).text
    assert 'frcnn_requests_total{route="/detect",status="200"} 1.0' in text
    assert 'frcnn_requests_total{route="none",status="404"} 1.0' in text
    assert "frcnn_batch_size_sum 1.0" in text
    assert "frcnn_images_in_flight 0.0" in text
    assert "to-be-found" not in text


@pytest.mark.parametrize("value", ["0", "-5", "1.5", "soon", "99999999999", "9" * 5000, "٣"])
async def test_a_bad_timeout_is_a_problem(value: str) -> None:
    async with serving(FakeDetector()) as client:
        headers = {b"X-Request-Timeout-Ms": value.encode()}
        check_problem(await client.post("/detect", content=red_png(1), headers=headers), 422, "bad-parameter")


async def test_a_deadline_passes() -> None:
    detector = FakeDetector()
    detector.gate.clear()
    async with serving(detector) as client:
        response = await client.post("/detect", content=red_png(1), headers={"X-Request-Timeout-Ms": "50"})
        check_problem(response, 504, "deadline-passed")
        assert (await client.get("/healthz")).json()["images_in_flight"] == 0
        detector.gate.set()
        assert (await client.post("/detect", content=red_png(2))).status_code == 200


@pytest.mark.parametrize("way", ["body", "json", "form", "batch", "infer"])
async def test_a_deadline_passes_while_all_threads_decode(way: str) -> None:
    detector, begun, gate = FakeDetector(), threading.Event(), threading.Event()
    data = base64.b64encode(red_png(2)).decode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [data]}
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "body": ("/detect", {"content": red_png(2)}),
        "json": ("/detect", {"json": {"image": data}}),
        "form": ("/detect", {"files": {"file": red_png(2)}}),
        "batch": ("/detect/batch", {"files": {"file": red_png(2)}}),
        "infer": ("/v2/models/fasterrcnn_resnet50_fpn/infer", {"json": {"inputs": [tensor]}}),
    }
    path, sent = ways[way]

    def padded_shape(size_hw: tuple[int, int]) -> tuple[int, int]:
        begun.set()
        assert gate.wait(20)
        return size_hw

    async with serving(detector, decode_threads=1) as client:
        detector.padded_shape = padded_shape
        first = asyncio.create_task(client.post("/detect", content=red_png(1)))
        assert await asyncio.to_thread(begun.wait, 20)
        answer = await client.post(path, **sent, headers={"X-Request-Timeout-Ms": "100"})
        assert answer.status_code == 504, answer.text
        assert not first.done()
        gate.set()
        assert (await first).status_code == 200


async def test_an_unknown_parameter_is_told_with_those_there_are() -> None:
    async with serving(FakeDetector()) as client:
        response = await client.post("/detect", params={"threshold": 0.5}, content=red_png(1))
    detail = check_problem(response, 422, "bad-parameter")["detail"]
    assert detail.startswith("threshold: there is no such parameter; there are score_threshold, ")


async def test_the_openapi_document_tells_bodies_and_problems() -> None:
    async with serving(FakeDetector()) as client:
        document = (await client.get("/openapi.json")).json()
        assert (await client.get("/docs")).status_code == 200
    operation = document["paths"]["/detect"]["post"]
    assert set(operation["requestBody"]["content"]) >= {"image/*", "multipart/form-data", "application/json"}
    assert set(operation["responses"]) == {"200", "400", "408", "413", "415", "422", "429", "431", "500", "503", "504"}
    names = {parameter["name"] for parameter in operation["parameters"]}
    assert names >= {
        "score_threshold",
        "max_detections",
        "labels",
        "box_format",
        "normalized",
        "X-Request-Timeout-Ms",
        "X-Priority",
    }
    assert "Problem" in document["components"]["schemas"]
    assert "HTTPValidationError" not in str(document)


@pytest.mark.parametrize("value", ["urgent", "", "1", "high, low"])
async def test_a_bad_priority_is_a_problem(value: str) -> None:
    async with serving(FakeDetector()) as client:
        for path in ("/detect", "/detect/batch"):
            response = await client.post(path, files={"file": red_png(1)}, headers={"X-Priority": value})
            assert "high, normal, low" in check_problem(response, 422, "bad-parameter")["detail"]


async def test_high_goes_before_normal_and_a_batch_request_last() -> None:
    detector = FakeDetector()
    detector.gate.clear()
    async with serving(detector, max_batch_size=1) as client:
        first = asyncio.create_task(client.post("/detect", content=red_png(0)))
        assert await asyncio.to_thread(detector.started.wait, 20)
        requests: list[tuple[str, dict[str, Any]]] = [
            ("/detect", {"content": red_png(1), "headers": {"X-Priority": "low"}}),
            ("/detect/batch", {"files": [("file", red_png(2))]}),
            ("/detect/batch", {"files": [("file", red_png(3))], "headers": {"X-Priority": "normal"}}),
            ("/detect", {"content": red_png(4)}),
            ("/detect", {"content": red_png(5), "headers": {"X-Priority": " High "}}),
        ]
        tasks = [first]
        for n, (path, arguments) in enumerate(requests, start=1):
            tasks.append(asyncio.create_task(client.post(path, **arguments)))
            while f"frcnn_images_queued {n}.0" not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.01)
        detector.gate.set()
        assert {r.status_code for r in await asyncio.gather(*tasks)} == {200}
    assert [batch[0][0] for batch in detector.batches] == [0, 5, 3, 4, 1, 2]


@pytest.mark.parametrize("path", ["/detect", "/detect/batch"])
async def test_a_file_in_a_form_needs_no_name(path: str) -> None:
    async with serving(FakeDetector()) as client:
        answer = await client.post(path, files={"file": (None, red_png(7, (32, 40)))})
        assert answer.status_code == 200
        body = answer.json()
        assert (body if path == "/detect" else body["results"][0]) == DETECTED
        other = await client.post(path, files={"image": red_png(7)})
        assert "no field named 'file'; it has 'image'" in check_problem(other, 400, "bad-request")["detail"]


async def test_head_is_answered_where_get_is() -> None:
    paths = ["/", "/docs", "/openapi.json", "/healthz", "/livez", "/readyz", "/labels", "/metrics", "/v2"]
    model = "/v2/models/fasterrcnn_resnet50_fpn"
    paths += ["/v2/health/live", "/v2/health/ready", model, f"{model}/ready", f"{model}/versions/1"]
    async with serving(FakeDetector()) as client:
        known = (await client.get("/openapi.json")).json()["paths"]
        got = {path.replace("{model}", "fasterrcnn_resnet50_fpn") for path in known if "get" in known[path]}
        assert got <= set(paths)
        for path in paths:
            answer = await client.head(path)
            assert answer.status_code == 200, path
            assert answer.headers["content-type"] == (await client.get(path)).headers["content-type"]


async def test_scrapes_at_once_leave_the_event_loop_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    exposition, rounds, scraped_in = Metrics.exposition, 0, []

    def noted(metrics: Metrics, accept: str = "") -> tuple[bytes, str]:
        scraped_in.append(rounds)
        return exposition(metrics, accept)

    async def count() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(Metrics, "exposition", noted)
    async with serving(FakeDetector()) as client:
        counting = asyncio.create_task(count())
        answers = await asyncio.gather(*(client.get("/metrics") for _ in range(20)))
        counting.cancel()
    assert {answer.status_code for answer in answers} == {200}
    assert len(scraped_in) == 20
    assert len(set(scraped_in)) == 20  # each in a round of its own


async def test_metrics_come_in_the_format_that_is_asked_for() -> None:
    async with serving(FakeDetector()) as client:
        await client.post("/detect", content=red_png(7))
        plain = await client.get("/metrics")
        assert plain.headers["content-type"].startswith("text/plain; version=")
        wanted = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
        other = await client.get("/metrics", headers={"Accept": wanted})
    assert other.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name for family in openmetrics.text_string_to_metric_families(other.text)}
    assert {"frcnn_requests", "frcnn_problems"} <= families
    assert not plain.text.endswith("# EOF\n")


@pytest.mark.parametrize(
    ("accept", "status"),
    [("image/png", 406), ("image/*", 406), ("image/png, application/json;q=0.5", 200), ("*/*", 200)],
)
async def test_a_batch_draws_nothing_and_says_so(accept: str, status: int) -> None:
    detector = FakeDetector()
    async with serving(detector) as client:
        answer = await client.post("/detect/batch", files={"file": red_png(7)}, headers={"Accept": accept})
    assert answer.status_code == status
    if status == 406:
        assert "/detect gives one picture" in check_problem(answer, 406, "not-acceptable")["detail"]
        assert not detector.batches
