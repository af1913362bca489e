from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import numpy as np
import pytest

from service.errors import QueueFullError, ServiceError
from service.web.problems import error_response, has_own_form, noted_problem, problem_of, release_frames


def scope_of(path: str) -> dict[str, Any]:
    return {"type": "http", "path": path, "state": {"request_id": "id"}}


@pytest.mark.parametrize(
    ("path", "members"),
    [
        ("/detect", {"type", "title", "status", "detail", "request_id"}),
        ("/v2/models/m/infer", {"error"}),
        ("/v2", {"error"}),
        ("/v1/vision/detection", {"success", "error", "duration"}),
        ("/v20/models", {"type", "title", "status", "detail", "request_id"}),
        ("/v1/visions", {"type", "title", "status", "detail", "request_id"}),
    ],
)
def test_a_failure_has_the_form_of_its_path(path: str, members: set[str]) -> None:
    scope = scope_of(path)
    assert noted_problem(scope) is None
    response = error_response(scope, QueueFullError("full", retry_after_s=3))
    document = json.loads(bytes(response.body))
    assert set(document) == members
    assert "full" in document.values()
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert noted_problem(scope) == "queue-full"
    is_problem = response.headers["content-type"] == "application/problem+json"
    assert is_problem == (not has_own_form(path)) == ("type" in members)


def test_the_document_of_one_image_of_a_batch() -> None:
    assert problem_of(scope_of("/detect/batch"), QueueFullError("full"))["request_id"] == "id"


def test_a_failure_lets_go_of_what_its_frames_held_without_the_collector() -> None:
    def fail_with_picture() -> tuple[ServiceError, weakref.ref[Any]]:
        kept: list[weakref.ref[Any]] = []

        def decode() -> None:
            picture = np.zeros((8, 8, 3), np.uint8)
            kept.append(weakref.ref(picture))
            raise ValueError("broken")

        try:
            try:
                decode()
            except ValueError as cause:
                raise ServiceError("why") from cause
        except ServiceError as error:
            failure = error
        return failure, kept[0]

    gc.disable()
    try:
        error, picture = fail_with_picture()
        assert picture() is not None  # by the frames of the traceback of its cause
        release_frames(error)
        assert picture() is None
    finally:
        gc.enable()


def test_errors_that_are_each_others_cause_end() -> None:
    one, other = ServiceError("one"), ServiceError("other")
    one.__cause__, other.__cause__ = other, one
    release_frames(one)
