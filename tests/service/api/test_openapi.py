from __future__ import annotations

import re

import pytest

from service.wire import PROBE_PATHS
from tests.support.fakes import FakeDetector
from tests.support.servers import serving

KEYS = "first-key-of-the-test,second-key-of-the-test"


@pytest.mark.anyio
async def test_the_document_asks_for_keys_only_where_they_are_needed() -> None:
    async with serving(FakeDetector(), api_keys=KEYS) as client:
        document = (await client.get("/openapi.json", headers={"X-API-Key": "first-key-of-the-test"})).json()
    assert document["components"]["securitySchemes"] == {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == ("401" in operation["responses"]) == (path not in PROBE_PATHS)
            if path not in PROBE_PATHS:
                form = "application/json" if path.startswith(("/v1/", "/v2")) else "application/problem+json"
                assert list(operation["responses"]["401"]["content"]) == [form]
    async with serving(FakeDetector()) as client:
        assert "securitySchemes" not in (await client.get("/openapi.json")).text


@pytest.mark.anyio
async def test_each_problem_of_a_route_has_its_meaning_and_its_form() -> None:
    async with serving(FakeDetector(), enable_reload=True) as client:
        document = (await client.get("/openapi.json")).json()
    forms = {"/v2/": ["error"], "/v1/vision/": ["success", "error", "duration"]}
    seen = set()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "431" in operation["responses"]
            for status, response in operation["responses"].items():
                if status < "400" or "content" not in response:
                    continue
                seen.add(status)
                assert len(response["description"]) > 5
                [(media_type, content)] = response["content"].items()
                own = next((members for prefix, members in forms.items() if path.startswith(prefix)), None)
                if own is not None and status != "431":  # sent before the path is known
                    assert (media_type, content["schema"]["required"]) == ("application/json", own)
                elif path not in {"/healthz", "/readyz"}:
                    assert media_type == "application/problem+json"
                    assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
    assert {"400", "409", "413", "415", "422", "429", "500", "503", "504"} <= seen


@pytest.mark.anyio
async def test_nothing_refers_to_what_is_not_there() -> None:
    async with serving(FakeDetector()) as client:
        text = (await client.get("/openapi.json")).text
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/(\w+)"', text)) <= set(schemas)
    assert "HTTPValidationError" not in text
