"""The headers of a request, looked up many times."""

from __future__ import annotations

from starlette.types import Scope

_FOUND = "frcnn.first_headers"


def first_headers(scope: Scope) -> dict[bytes, bytes]:
    """The first header of each name, in lower case, as `starlette.datastructures.Headers` would find it.

    That class goes through all of them each time.
    """
    found: dict[bytes, bytes] | None = scope.get(_FOUND)
    if found is None:
        found = scope[_FOUND] = dict(reversed(scope["headers"]))
    return found
