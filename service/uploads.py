"""Reading images from the bodies of requests, within limits that hold while the bytes arrive."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.errors import BadRequestError, BodyTimeoutError, TooLargeError, UnsupportedTypeError

FILE_FIELD = "file"
_OVERHEAD_BYTES = 64 * 1024  # what a form or JSON holds beside the files themselves
_MOST_FIELDS = 100
_MOST_JSON_TOKENS = 1000


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Bounds on what one request may send."""

    body_bytes: int
    files: int
    seconds: float  # for the whole body, however it drips


async def read_image(request: Request, limits: UploadLimits) -> bytes:
    """The one image of a request: its raw body, its multipart field `file`, or `{"image": "<base64>"}`.

    Raises:
        BadRequestError: the body is not what its Content-Type says, or holds no image or several.
        BodyTimeoutError: it comes too slowly.
        TooLargeError: it is over the limits.
        UnsupportedTypeError: a Content-Type that is not taken.
    """
    kind = _content_type(request)
    if kind == "multipart/form-data":
        files = await read_files(request, replace(limits, files=2))
        if len(files) > 1:
            raise BadRequestError(f"several files were sent in {FILE_FIELD!r}; /detect/batch takes several")
        return files[0]
    if kind == "application/json":
        # Base64 takes four characters for three bytes.
        body = await read_body(request, limits.body_bytes * 4 // 3 + _OVERHEAD_BYTES, limits.seconds)
        return await asyncio.to_thread(_image_in_json, body)
    if kind.startswith("image/") or kind in {"", "application/octet-stream"}:
        return await read_body(request, limits.body_bytes, limits.seconds)
    raise UnsupportedTypeError(
        f"a body of type {kind} is not taken; send the image itself as image/* or application/octet-stream "
        "(curl: -H 'Content-Type: application/octet-stream'), as multipart/form-data in a field named "
        f"{FILE_FIELD!r}, or as application/json in base64"
    )


async def read_files(request: Request, limits: UploadLimits) -> list[bytes]:
    """The contents of the multipart fields `file`, in order; at least one.

    Raises:
        BadRequestError: the form is broken or has no such field with a file.
        BodyTimeoutError: it comes too slowly.
        TooLargeError: it is over the limits.
        UnsupportedTypeError: it is not a multipart form.
    """
    if _content_type(request) != "multipart/form-data":
        raise UnsupportedTypeError(f"send multipart/form-data with one field named {FILE_FIELD!r} for each image")
    body = await read_body(request, limits.body_bytes + _OVERHEAD_BYTES, limits.seconds)
    parser = MultiPartParser(
        request.headers, _once(body), max_files=limits.files + 1, max_fields=_MOST_FIELDS, max_part_size=len(body)
    )
    parser.spool_max_size = len(body) + 1  # the bytes are in memory already: never through the disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, UnicodeError) as error:
        if "Too many files" in str(error):
            raise _too_many(limits) from error
        raise BadRequestError(f"the multipart form is broken: {error}") from error
    try:
        files = [await f.read() for f in form.getlist(FILE_FIELD) if isinstance(f, UploadFile)]
    finally:
        await form.close()
    if len(files) > limits.files:
        raise _too_many(limits)
    if not files:
        raise BadRequestError(f"the form has no file in a field named {FILE_FIELD!r}")
    return files


def _too_many(limits: UploadLimits) -> TooLargeError:
    return TooLargeError(f"too many files in one request: {limits.files} is the most that is taken")


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """A request's whole body.

    Raises:
        BodyTimeoutError: it takes longer than `seconds`.
        TooLargeError: it has more than `limit` bytes; told before the rest is read.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise TooLargeError(f"the body has {int(declared):,} bytes; at most {limit:,} are taken")
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise TooLargeError(f"the body has more than {limit:,} bytes, which is the most that is taken")
    except TimeoutError as error:
        raise BodyTimeoutError(f"only {len(body):,} bytes of the body came within {seconds:g} s") from error
    return bytes(body)


async def _once(body: bytes) -> AsyncGenerator[bytes]:
    yield body


def _image_in_json(body: bytes) -> bytes:
    # Base64 has none of these. A body full of them would keep the parser, and so every thread, busy for seconds.
    if sum(map(body.count, (b"[", b"{", b","))) > _MOST_JSON_TOKENS:
        raise BadRequestError('the JSON body must be {"image": "<base64>"}')
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
    encoded = document.get("image") if isinstance(document, dict) else None
    if not isinstance(encoded, str):
        raise BadRequestError('the JSON body must be {"image": "<base64>"}')
    if encoded.startswith("data:"):
        encoded = encoded.partition(",")[2]
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)  # `base64` breaks its lines
    except (binascii.Error, ValueError) as error:
        raise BadRequestError(f"'image' is not base64: {error}") from error


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
