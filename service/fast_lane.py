"""A short way for `POST /detect`, which is nearly all that comes.

FastAPI's own way to a route (its middlewares, included routers, dependencies and validation) takes longer than
everything else that this service does for a request, decoding aside. What it would do for this route is known
beforehand. Whatever is not plainly right takes the usual way, and gets its answer, or its refusal, there.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.errors import ServiceError
from service.pipeline import ClientGoneError
from service.problems import error_response
from service.routes import DETECT_PATH, answer_detect
from service.schemas import DetectQuery

CLIENT_CLOSED_REQUEST = 499  # nobody reads it: it is what the log and the metrics count
_LONGEST_QUERY_BYTES = 256  # of those that are remembered


def takes(scope: Scope) -> bool:
    """Whether this is a plain request to detect."""
    return (
        scope["type"] == "http"
        and scope["path"] == DETECT_PATH
        and scope["method"] == "POST"
        and not scope.get("root_path")
        and len(scope["query_string"]) <= _LONGEST_QUERY_BYTES
        and _parsed(scope["query_string"]) is not None
    )


class FastLane:
    """Answers what it `takes`.

    Args:
        route: that of `/detect`, as the metrics and the log want to know it.
    """

    def __init__(self, *, route: Any) -> None:
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = _parsed(scope["query_string"])
        assert query is not None, "else it is not taken"
        scope["route"] = self._route
        try:
            response = await answer_detect(Request(scope, receive), query)
        except ServiceError as error:
            response = error_response(scope, error)
        except (ClientGoneError, ClientDisconnect):
            response = Response(status_code=CLIENT_CLOSED_REQUEST)
        await response(scope, receive, send)


@lru_cache(maxsize=256)
def _parsed(query_string: bytes) -> DetectQuery | None:
    """The query; None where it is not right, or may not be."""
    pairs = QueryParams(query_string).multi_items()
    given = dict(pairs)
    if len(given) < len(pairs) or not all(given.values()):
        return None
    try:
        return DetectQuery.model_validate(given)
    except ValidationError:
        return None
