"""The short way answers what the usual way would."""

from __future__ import annotations

import json

import pytest
from opentelemetry.trace import NoOpTracerProvider

from service.app import create_app
from service.fast_lane import _parsed, takes
from service.schemas import DetectQuery, FastJSONResponse
from service.settings import Settings

pytestmark = pytest.mark.anyio

QUERIES = (
    "",
    "score_threshold=0.5",
    "score_threshold=0.5&labels=person&box_format=xywh&normalized=true",
    "score_threshold=2",
    "score_threshold=",
    "labels=unicorn",
    "unknown=1",
    "max_detections=1&max_detections=2",
    "&&=",
    "labels=%FF",
    "labels=" + "person," * 99 + "person",
)


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("body", [None, b"no image", b""])
async def test_it_answers_as_the_usual_way_does(serving, fake, make_png, monkeypatch, query, body):
    content = make_png(40) if body is None else body
    answers = []
    for usual in (False, True):
        if usual:
            monkeypatch.setattr("service.app.takes", lambda _: False)
        async with serving(fake()) as client:
            path = f"/detect?{query}" if query else "/detect"
            response = await client.post(path, content=content, headers={"X-Request-ID": "same"})
            count = f'frcnn_requests_total{{route="/detect",status="{response.status_code}"}} 1.0'
            assert count in (await client.get("/metrics")).text
            headers = {name: value for name, value in response.headers.items() if name != "server-timing"}
            answers.append((response.status_code, headers, response.json()))
    assert answers[0] == answers[1]


def test_only_what_is_plainly_right_goes_by_it() -> None:
    assert _parsed(b"") == DetectQuery()
    assert _parsed(b"score_threshold=0.25&labels=dog%2Ccat") == DetectQuery(score_threshold=0.25, labels="dog,cat")
    assert _parsed(b"labels=a&labels=b") is None
    assert _parsed(b"labels=") is None
    assert _parsed(b"surplus=1") is None


@pytest.mark.parametrize("tracer_provider", [None, NoOpTracerProvider()])
def test_where_traces_are_asked_for_it_is_closed(tracer_provider) -> None:
    app = create_app(Settings(), load=lambda _: [], tracer_provider=tracer_provider)
    assert (app.fast_lane is not None) is (tracer_provider is None)


@pytest.mark.parametrize(
    ("path", "method", "root", "taken"),
    [
        ("/detect", "POST", "", True),
        ("/detect", "GET", "", False),
        ("/detect/batch", "POST", "", False),
        ("/detect", "POST", "/app", False),
    ],
)
def test_other_paths_and_methods_pass(path: str, method: str, root: str, taken: bool) -> None:
    scope = {"type": "http", "path": path, "method": method, "root_path": root, "query_string": b""}
    assert takes(scope) is taken
    assert not takes({"type": "lifespan"})


def test_json_keeps_its_digits() -> None:
    values = [0.1, 1 / 3, 123.4567, 0.998162, 1e-7, 639.99995, 0.0, 5e-5, 1e22]
    assert json.loads(FastJSONResponse(values).body) == values
    assert FastJSONResponse([0.05, 123.4567, 7.0]).body == b"[0.05,123.4567,7.0]"
