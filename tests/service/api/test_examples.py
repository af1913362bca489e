"""The examples of the OpenAPI document, and of README.md, are what the service answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model.data.synthetic import SyntheticData
from service.api import examples
from service.app import create_app
from service.settings import Settings
from tests.support.servers import served

README = Path(__file__).parents[3] / "README.md"
QUERY = {"max_detections": 3}  # of the examples


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    settings = Settings(weights="bundled", device="cpu", precision="fp32", backend="torch", max_batch_size=1)
    with served(create_app(settings)) as url, httpx.Client(base_url=url, timeout=300) as asking:
        yield asking


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """As `frcnn sample` writes it."""
    path = tmp_path_factory.mktemp("samples") / "sample_0.jpg"
    SyntheticData("test", count=1, size_hw=(480, 640), seed=0).picture(0).save(path, quality=92)
    return path.read_bytes()


def check(answer: dict[str, Any], example: dict[str, Any]) -> None:
    """Another processor may round the last digits otherwise."""
    np.testing.assert_allclose(answer["boxes"], example["boxes"], rtol=0, atol=0.05)
    np.testing.assert_allclose(answer["scores"], example["scores"], rtol=0, atol=1e-3)
    approximate = {"boxes": None, "scores": None}
    assert answer | approximate == example | approximate


def test_detection(client: httpx.Client, picture: bytes) -> None:
    check(client.post("/detect", params=QUERY, content=picture).json(), examples.DETECTION)


def test_batch_with_a_problem(client: httpx.Client, picture: bytes) -> None:
    files = [("file", picture), ("file", b"no image")]
    found, problem = client.post("/detect/batch", params=QUERY, files=files).json()["results"]
    check(found, examples.BATCH["results"][0])
    assert problem | {"request_id": ""} == examples.PROBLEM | {"request_id": ""}


def test_labels_and_health(client: httpx.Client) -> None:
    assert client.get("/labels").json() == examples.LABELS
    health = client.get("/healthz").json()
    assert health | {"uptime_s": 0} == examples.HEALTH | {"uptime_s": 0}


def test_the_document_has_them() -> None:
    schemas = create_app(Settings()).openapi()["components"]["schemas"]
    for name in ("DetectionResult", "BatchResult", "Problem", "Health", "Labels"):
        (example,) = schemas[name]["examples"]
        assert example == getattr(
            examples, {"DetectionResult": "DETECTION", "BatchResult": "BATCH"}.get(name, name.upper())
        )


def test_the_readme_has_the_best_detection_of_the_same_answer() -> None:
    shown = re.search(r'^ *(\{"boxes":.*?\}\})$', README.read_text(), re.MULTILINE | re.DOTALL)
    assert shown is not None
    best = {key: value[:1] if isinstance(value, list) else value for key, value in examples.DETECTION.items()}
    assert json.loads(shown[1]) == best
