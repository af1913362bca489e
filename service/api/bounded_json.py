"""Parse the JSON of untrusted callers within a bound on its parts."""

from __future__ import annotations

import json
from typing import Any

from service.errors import BadRequestError


def read_object(text: bytes, *, most_parts: int, expected: str) -> dict[str, Any]:
    """The object that `text` holds. Blocking: the parser keeps every thread waiting.

    Args:
        text: the JSON.
        most_parts: bound on arrays, objects and commas; a body full of them would take seconds.
        expected: the detail of the error for anything else.

    Raises:
        BadRequestError: it is not JSON, no object, or of too many parts.
    """
    if sum(map(text.count, (b"[", b"{", b","))) > most_parts:
        raise BadRequestError(expected)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise BadRequestError(expected)
    return document
