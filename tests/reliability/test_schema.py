"""Requests made from the OpenAPI document, whole and broken on purpose: each gets an answer that it promises."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from PIL import Image
from schemathesis import Case
from schemathesis.checks import CHECKS, load_all_checks
from torch import Tensor

from model.weights.categories import Categories
from service.app import create_app
from service.deepstack.document import CONFIDENCE_FIELD, IMAGE_FIELD, KEY_FIELD
from service.devices.detector import Detections, ModelInfo
from service.settings import Settings
from tests.support.servers import served

KEY = "key-of-the-schema-tests"
AUTHORIZED = {"X-API-Key": KEY}
FEW, MANY = 12, int(os.environ.get("RELIABILITY_EXAMPLES", "2000"))


load_all_checks()
EXCLUDED: list[Any] = [
    CHECKS.get_one("not_a_server_error"),  # a deadline that is asked for may pass
    CHECKS.get_one("positive_data_acceptance"),  # that bytes are an image is more than a document can ask for
]
REJECTION = CHECKS.get_one("negative_data_rejection")


class OneBox:
    """A detector that finds one object in every picture, as far from the corner as its first pixel is red."""

    info = ModelInfo("fasterrcnn_resnet50_fpn", "fake", Categories.of_objects(["person", "dog"]))
    device = "cpu"
    precision = "fp32"
    backend = "torch"
    best_batch_size = 1

    def padded_shape(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        return size_hw

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        boxes = [np.array([[int(image[0, 0, 0]), 2, 300, 400]], np.float32) for image in images]
        return [Detections(box, np.array([2]), np.array([0.9], np.float32)) for box in boxes]


def service() -> Any:
    options = Settings(api_keys=KEY, max_body_bytes=100_000, max_batch_body_bytes=200_000, access_log=False)
    return create_app(options, load=lambda _: [OneBox()])


schema = schemathesis.openapi.from_dict(
    service().openapi(),
    config=schemathesis.Config.from_dict(
        {
            "headers": AUTHORIZED,
            # Unknown headers are ignored: every proxy adds some.
            "generation": {"with-security-parameters": False, "allow-extra-parameters": False},
            "checks": {"negative_data_rejection": {"expected-statuses": ["4xx", "5xx"]}},  # 431 among them
        }
    ),
)


def examples(count: int) -> Callable[[Any], Any]:
    """So many of each operation, the same at every run."""
    return settings(max_examples=count, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The service, which must be as well after all the tests as before."""
    buffer = io.BytesIO()
    Image.new("RGB", (640, 480), (77, 0, 0)).save(buffer, "PNG")
    with served(service()) as address, httpx.Client(base_url=address, headers=AUTHORIZED, timeout=30) as client:
        before = client.post("/detect", content=buffer.getvalue()).json()
        yield address
        assert client.post("/detect", content=buffer.getvalue()).json() == before
        health = client.get("/healthz").json()
        assert (health["status"], health["images_in_flight"]) == ("ok", 0)
        print(f"RECORD schema: {dict(sorted(answered.items()))}")


answered: Counter[int] = Counter()


def check(case: Case[Any], url: str) -> None:
    response = case.call(base_url=url, headers=AUTHORIZED, timeout=30)
    answered[response.status_code] += 1
    if response.status_code == 504:
        assert int(case.headers["X-Request-Timeout-Ms"]) < 10_000, "the caller set no deadline this short"
    else:
        assert response.status_code < 500
    may_be_taken = rejects_a_file(response) or is_lost_in_a_form(case)
    case.validate_response(response, excluded_checks=EXCLUDED + [REJECTION] * may_be_taken)


def rejects_a_file(response: schemathesis.Response) -> bool:
    """Whether the answer to a batch is 200 and says beside the other results what is wrong with one of its files."""
    if response.status_code != 200 or "json" not in response.headers["content-type"][0]:
        return False
    body = response.json()
    return isinstance(body, dict) and any("status" in result for result in body.get("results", []))


def is_lost_in_a_form(case: Case[Any]) -> bool:
    """Whether a form cannot show what is wrong: all its values are texts, and a list of one is its value."""
    if case.media_type != "multipart/form-data" or not isinstance(case.body, dict) or IMAGE_FIELD not in case.body:
        return False
    confidence = case.body.get(CONFIDENCE_FIELD)
    if isinstance(confidence, str | bool | list):
        texts = confidence if isinstance(confidence, list) else [confidence]
        return not texts or (len(texts) == 1 and _is_a_confidence(str(texts[0])))
    if confidence is not None and not (isinstance(confidence, int | float) and 0 <= confidence <= 1):
        return False
    return not isinstance(case.body.get(KEY_FIELD, ""), str)


def _is_a_confidence(text: str) -> bool:
    try:
        return text.strip() == "" or 0 <= float(text) <= 1
    except ValueError:
        return False


@schema.parametrize()
@examples(FEW)
def test_every_answer_is_one_that_the_document_promises(case: Case[Any], url: str) -> None:
    check(case, url)


@pytest.mark.reliability
@schema.parametrize()
@examples(MANY)
def test_so_is_every_one_of_thousands(case: Case[Any], url: str) -> None:
    check(case, url)
