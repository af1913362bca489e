"""Parse the JSON of untrusted callers within a bound on its parts, and the base64 in it."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from service.errors import BadRequestError

_WHITE_SPACE = b" \t\n\r\v\f"
_PARTS = (b"[", b"{", b",")
_PART_BYTES = 320  # that a part takes, at most: a member of an object, with a name and a value of its own
_COUNTED_AT_ONCE = 1 << 20  # bytes


def read_object(text: bytes, *, most_parts: int, expected: str) -> dict[str, Any]:
    """The object that `text` holds. Blocking: the parser keeps every thread waiting.

    Args:
        text: the JSON.
        most_parts: bound on arrays, objects and commas; a body full of them would take seconds.
        expected: the detail of the error for anything else.

    Raises:
        BadRequestError: it is not JSON, no object, or of too many parts.
    """
    if _count_parts(text, most_parts) > most_parts:
        raise BadRequestError(expected)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise BadRequestError(expected)
    return document


def unpacking_bytes(text: bytes, *, most_parts: int) -> int:
    """The memory that `read_object` and `decode_base64` need beside the JSON `text`, at most."""
    # The text, its one long string, that without white space, and what it encodes. A string with a wide character takes
    # four bytes for each character, and JSON writes one as it is or after a backslash.
    may_be_wide = not text.isascii() or b"\\u" in text
    return len(text) * (10 if may_be_wide else 4) + _PART_BYTES * min(_count_parts(text, most_parts), most_parts)


def _count_parts(text: bytes, most: int) -> int:
    """Arrays, objects and commas; where there are more than `most`, not all of them."""
    count = 0
    for start in range(0, len(text), _COUNTED_AT_ONCE):
        count += sum(map(text[start : start + _COUNTED_AT_ONCE].count, _PARTS))
        if count > most:
            break
    return count


def decode_base64(text: str, *, name: str) -> bytes:
    """What a text in base64 encodes. White space in it, such as line breaks, means nothing.

    Args:
        text: the base64.
        name: what the text is called where it is wrong.

    Raises:
        BadRequestError: it is not base64.
    """
    try:
        # Not `text.split()`: pieces of two characters would take twenty times the memory of the text.
        return base64.b64decode(text.encode("ascii").translate(None, _WHITE_SPACE), validate=True)
    except UnicodeEncodeError:
        raise BadRequestError(f"{name} is not base64: it has characters outside ASCII") from None
    except (binascii.Error, ValueError) as error:
        raise BadRequestError(f"{name} is not base64: {error}") from error
