from __future__ import annotations

import pytest

from service.wire import DEEPSTACK_PATH
from tests.support.fakes import FakeDetector
from tests.support.servers import serving

pytestmark = pytest.mark.anyio
KEY = "key-of-the-deepstack-tests"


async def test_the_openapi_document_has_it() -> None:
    async with serving(FakeDetector(), api_keys=KEY) as client:
        client.headers["X-API-Key"] = KEY
        operation = (await client.get("/openapi.json")).json()["paths"][DEEPSTACK_PATH]["post"]
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert list(form["properties"]) == ["image", "min_confidence", "api_key"]
    assert "Problem" in str(operation["responses"].pop("431"))  # sent before the path is known
    assert set(operation["responses"]) == {"200", "400", "401", "408", "413", "415", "422", "429", "500", "503", "504"}
    assert "Problem" not in str(operation["responses"])
    assert [one["name"] for one in operation["parameters"] if one["in"] == "query"] == [
        "score_threshold", "max_detections", "labels", "iou_threshold", "class_agnostic"
    ]  # fmt: skip
