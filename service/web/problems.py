"""Make problem documents of failures, note their codes for the log and the metrics, and free what they hold."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Scope

from service.errors import PROBLEM_TYPE, ServiceError, problem

_OIP_PATHS = re.compile(r"/v2(/|$)")
_DEEPSTACK_PATHS = re.compile(r"/v1/vision(/|$)")


def problem_response(
    scope: Scope, *, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Make the response to a failed request. `RequestContext` has given the request its id.

    Under /v2 it has the form that the Open Inference Protocol wants, and under /v1/vision DeepStack's.
    """
    scope["state"]["problem"] = code
    if is_oip_path(scope["path"]):
        return JSONResponse({"error": detail}, status_code=status, headers=headers)
    if is_deepstack_path(scope["path"]):
        document = {"success": False, "error": detail, "duration": 0}
        return JSONResponse(document, status_code=status, headers=headers)
    body = problem(status=status, code=code, detail=detail, request_id=scope["state"]["request_id"])
    return JSONResponse(body, status_code=status, headers=headers, media_type=PROBLEM_TYPE)


def is_oip_path(path: str) -> bool:
    """Whether the Open Inference Protocol says what a path answers."""
    return _OIP_PATHS.match(path) is not None


def is_deepstack_path(path: str) -> bool:
    """Whether DeepStack's API says what a path answers."""
    return _DEEPSTACK_PATHS.match(path) is not None


def has_own_form(path: str) -> bool:
    """Whether the errors of a path have the form of another protocol."""
    return is_oip_path(path) or is_deepstack_path(path)


def error_response(scope: Scope, error: ServiceError) -> JSONResponse:
    """Make the response to an expected failure, and release its frames."""
    release_frames(error)
    return problem_response(scope, status=error.status, code=error.code, detail=error.detail, headers=error.headers)


def release_frames(error: BaseException | None) -> None:
    """Clear the frames of a failure that has become an answer: they hold its picture, in reference cycles.

    Otherwise the picture would stay in memory until the garbage collector runs.
    """
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        error = waiting.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            traceback.clear_frames(error.__traceback__)
            waiting += [error.__cause__, error.__context__]


def problem_of(scope: Scope, error: ServiceError) -> dict[str, Any]:
    """Make the problem document of an expected failure, and release its frames."""
    release_frames(error)
    request_id: str = scope["state"]["request_id"]
    return problem(status=error.status, code=error.code, detail=error.detail, request_id=request_id)


def noted_problem(scope: Scope) -> str | None:
    """The code of the problem that the request was answered with, if it was."""
    code: str | None = scope["state"].get("problem")
    return code
