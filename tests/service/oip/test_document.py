from __future__ import annotations

import pytest

from tests.support.fakes import FakeDetector
from tests.support.servers import serving


@pytest.mark.anyio
async def test_the_openapi_document_has_it() -> None:
    async with serving(FakeDetector()) as client:
        document = (await client.get("/openapi.json")).json()
    paths = {path: operations for path, operations in document["paths"].items() if path.startswith("/v2")}
    assert len(paths) == 6
    assert "HTTPValidationError" not in str(document)
    for path, operations in paths.items():
        for operation in operations.values():
            named = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
            assert named == ({"model"} if "{model}" in path else set())
            assert "Problem" in str(operation["responses"].pop("431"))  # sent before the path is known
            assert "Problem" not in str(operation["responses"])
    assert set(paths["/v2/models/{model}/infer"]["post"]["responses"]) == {
        "200", "400", "404", "408", "413", "415", "422", "429", "500", "503", "504",
    }  # fmt: skip
