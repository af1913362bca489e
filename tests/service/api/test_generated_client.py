"""The OpenAPI document as generators of clients read it."""

from __future__ import annotations

import base64
import importlib
import io
import os
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson
import pytest

from service.app import create_app
from service.settings import Settings
from tests.support.fakes import FakeDetector, red_png
from tests.support.servers import live

ROOT = Path(__file__).parents[3]
NAME = "generated_client_of_the_service"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = create_app(Settings(), load=lambda _: []).openapi()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def schemas_in(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        if "type" in part or "$ref" in part:
            yield part
        for value in part.values():
            yield from schemas_in(value)
    elif isinstance(part, list):
        for value in part:
            yield from schemas_in(value)


def test_every_array_says_what_it_holds(document: dict[str, Any]) -> None:
    arrays = [schema for schema in schemas_in(document) if schema.get("type") == "array"]
    assert len(arrays) > 10
    assert all("items" in schema or "prefixItems" in schema for schema in arrays)


def test_every_success_has_a_schema(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        for media_type, content in operation["responses"]["200"]["content"].items():
            assert content["schema"], f"{name}, {media_type}"


def test_what_follows_the_json_can_be_announced(document: dict[str, Any]) -> None:
    infer = document["paths"]["/v2/models/{model}/infer"]["post"]
    assert "Inference-Header-Content-Length" in {parameter["name"] for parameter in infer["parameters"]}


def generator() -> str:
    """openapi-python-client, which needs older packages than the service and so an environment of its own."""
    own = ROOT / ".venv-generator" / "bin" / "openapi-python-client"
    found = os.environ.get("CLIENT_GENERATOR") or (str(own) if own.is_file() else shutil.which(own.name))
    if found is None:
        pytest.skip("needs openapi-python-client: make test-client")
    return found


@pytest.fixture
def generated(document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "openapi.json").write_bytes(orjson.dumps(document))
    (tmp_path / "config.yml").write_text("post_hooks: []\n")
    command = [generator(), "generate", "--path", "openapi.json", "--config", "config.yml", "--meta", "none"]
    made = subprocess.run(
        [*command, "--output-path", NAME], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    told = [line for line in (made.stdout + made.stderr).splitlines() if "WARNING" in line or "nsupported" in line]
    # A range is no type that one can send; the bytes go as application/octet-stream.
    assert told == ["WARNING parsing POST /detect within detection.", "Unsupported content type image/*"]
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module(NAME)
    for name in [name for name in sys.modules if name.split(".")[0] == NAME]:
        del sys.modules[name]


def functions(package: ModuleType) -> dict[str, Any]:
    """The module of each operation, by its name."""
    api = importlib.import_module(f"{package.__name__}.api")
    found = pkgutil.walk_packages(api.__path__, f"{api.__name__}.")
    return {one.name.rpartition(".")[2]: importlib.import_module(one.name) for one in found if not one.ispkg}


def model(package: ModuleType, ending: str) -> Any:
    models = importlib.import_module(f"{package.__name__}.models")
    (name,) = [name for name in models.__all__ if name.endswith(ending)]
    return getattr(models, name)


def test_a_generated_client_calls_every_documented_path(document: dict[str, Any], generated: ModuleType) -> None:
    png = red_png(7, (32, 40))
    encoded = base64.b64encode(png).decode()
    file = importlib.import_module(f"{NAME}.types").File
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
    asked = {"inputs": [{**tensor, "data": [encoded]}], "id": "7", "parameters": {"score_threshold": 0.5}}
    head = orjson.dumps({"inputs": [tensor]})
    detector = model(generated, "InferPostModel")("fasterrcnn_resnet50_fpn")
    bodies: dict[str, list[dict[str, Any]]] = {
        "detect_detect_post": [
            {"body": file(payload=io.BytesIO(png))},
            {"body": model(generated, "DetectPostFilesBody")(file=file(payload=io.BytesIO(png))), "max_detections": 1},
            {"body": model(generated, "DetectPostJsonBody")(image=encoded), "labels": ["dog", "1"]},
        ],
        "detect_batch_detect_batch_post": [
            {"body": model(generated, "BatchPostBody")(file=[file(payload=io.BytesIO(png)) for _ in range(2)])}
        ],
        "infer_v2_models_model_infer_post": [
            {"model": detector, "body": model(generated, "JsonInferRequest").from_dict(asked)},
            {
                "model": detector,
                "body": file(payload=io.BytesIO(head + png)),
                "inference_header_content_length": len(head),
            },
        ],
        "detection_v1_vision_detection_post": [
            {
                "body": model(generated, "VisionDetectionPostBody")(
                    image=file(payload=io.BytesIO(png)), min_confidence=0.1
                )
            }
        ],
        "model_metadata_v2_models_model_get": [{"model": detector}],
        "model_ready_v2_models_model_ready_get": [{"model": detector}],
    }
    calls = functions(generated)
    assert len(calls) == len(list(operations(document)))
    with live(FakeDetector()) as url, generated.Client(base_url=url) as client:
        for name, module in calls.items():
            for arguments in bodies.get(name, [{}]):
                answer = module.sync_detailed(client=client, **arguments)
                assert answer.status_code == 200, (name, answer.content)
                if name != "metrics_metrics_get":  # whose text it leaves as it is
                    assert answer.parsed is not None, name
        (found,) = [
            output
            for output in calls["infer_v2_models_model_infer_post"]
            .sync(client=client, **bodies["infer_v2_models_model_infer_post"][0])
            .outputs
            if output.name == "boxes"
        ]
    assert found.shape == [1, 4]
