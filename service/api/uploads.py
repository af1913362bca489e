"""Reading images from the bodies of requests, within limits that hold while the bytes arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request

from service.api.bounded_json import decode_base64, read_object, unpacking_bytes
from service.api.forms import Form, FormError, TooManyFilesError, read_form
from service.api.query import TiledQuery
from service.errors import (
    BadParameterError,
    BadRequestError,
    BodyTimeoutError,
    TooLargeError,
    UnsupportedTypeError,
)

T = TypeVar("T")

FILE_FIELD = "file"
_OVERHEAD_BYTES = 64 * 1024  # what a form or JSON holds beside the files themselves
_MOST_JSON_PARTS = 1000  # base64 has none
_OPTIONS = frozenset(TiledQuery.model_fields)
_EXPECTED_JSON = 'the JSON body must be {"image": "<base64>"}'


class InThread(Protocol):
    """Runs blocking work beside the event loop."""

    def __call__(self, work: Callable[[], T]) -> asyncio.Future[T]: ...


class UploadLimits(NamedTuple):
    """Bounds on what one request may send, and what reading it needs.

    Attributes:
        body_bytes: most bytes of the body.
        files: most files in it.
        seconds: for the whole body, however slowly it arrives.
        reserve: reserves memory for a number of further bytes, or raises QueueFullError.
        in_thread: unpacks forms and JSON.
        working: reserves memory for unpacking, or raises QueueFullError.
    """

    body_bytes: int
    files: int
    seconds: float
    reserve: Callable[[int], None]
    in_thread: InThread
    working: Callable[[int], AbstractContextManager[None]]

    def in_base64(self) -> UploadLimits:
        """The same for files in base64, which takes four characters for three bytes, and the JSON around them."""
        return self._replace(body_bytes=self.body_bytes * 4 // 3 + _OVERHEAD_BYTES)

    def in_form(self) -> UploadLimits:
        """The same for files and the form around them."""
        return self._replace(body_bytes=self.body_bytes + _OVERHEAD_BYTES)


async def read_image(request: Request, limits: UploadLimits) -> bytes:
    """Read the one image of a request: its raw body, its multipart field `file`, or `{"image": "<base64>"}`.

    Raises:
        BadRequestError: the body is not what its Content-Type says, or holds no image or several.
        BadParameterError: it holds an option, too.
        BodyTimeoutError: it arrives too slowly.
        TooLargeError: it is over the limits.
        UnsupportedTypeError: a Content-Type or an encoding that is not taken.
        QueueFullError: there is no memory for it now.
    """
    kind = _content_type(request)
    if kind == "multipart/form-data":
        files = await read_files(request, limits._replace(files=2))
        if len(files) > 1:
            raise BadRequestError(f"several files were sent in {FILE_FIELD!r}; /detect/batch takes several")
        return files[0]
    if kind == "application/json":
        unpack = partial(_image_in_json, await read_body(request, limits.in_base64()))
        with limits.working(unpacking_bytes(unpack.args[0], most_parts=_MOST_JSON_PARTS)):
            unpacking = limits.in_thread(unpack)
            del unpack  # this frame would keep the body while it waits for a thread
            return await unpacking
    if kind.startswith("image/") or kind in {"", "application/octet-stream"}:
        return await read_body(request, limits)
    raise UnsupportedTypeError(
        f"a body of type {kind} is not taken; send the image itself as image/* or application/octet-stream "
        "(curl: -H 'Content-Type: application/octet-stream'), as multipart/form-data in a field named "
        f"{FILE_FIELD!r}, or as application/json in base64"
    )


async def read_files(request: Request, limits: UploadLimits) -> list[bytes]:
    """Read the contents of the multipart fields `file`, in order; at least one.

    Raises:
        BadRequestError: the form is broken or has no such field with a file.
        BadParameterError: it has an option, too.
        BodyTimeoutError: it arrives too slowly.
        TooLargeError: it is over the limits.
        UnsupportedTypeError: it is not a multipart form, or encoded.
        QueueFullError: there is no memory for it now.
    """
    if _content_type(request) != "multipart/form-data":
        raise UnsupportedTypeError(f"send multipart/form-data with one field named {FILE_FIELD!r} for each image")
    form = await _read_form(request, limits, FILE_FIELD)
    _reject_options(form.names)
    _check_files(form, FILE_FIELD)
    return await limits.in_thread(partial(_joined, form.files))


async def read_image_field(
    request: Request,
    limits: UploadLimits,
    *,
    field: str,
    texts: Collection[str],
    before_image: Callable[[dict[str, str]], None],
) -> tuple[bytes, dict[str, str]]:
    """Read the one image of a form, and the texts of other fields.

    Args:
        request: its body is a form.
        limits: bounds on it.
        field: name of the image's field.
        texts: names of the other fields.
        before_image: gets the texts that stand before the image, before anything of the image is kept; may raise.

    Raises:
        ServiceError: what `read_files` raises, except for options; and what `before_image` raises.
    """
    if _content_type(request) != "multipart/form-data":
        raise UnsupportedTypeError(f"send multipart/form-data with the image in a field named {field!r}")
    form = await _read_form(request, limits._replace(files=1), field, texts, before_image)
    if not form.files:
        before_image(form.texts)
    _check_files(form, field)
    return await limits.in_thread(lambda: b"".join(form.files[0])), form.texts


async def _read_form(
    request: Request,
    limits: UploadLimits,
    field: str,
    texts: Collection[str] = (),
    before_files: Callable[[dict[str, str]], None] = lambda _: None,
) -> Form:
    """Read a form piece by piece, as it arrives: at once it would block the event loop, and be there twice."""
    try:
        async with asyncio.timeout(limits.seconds):
            return await read_form(
                request.headers["content-type"],
                _pieces(request, limits.in_form()),
                field=field,
                most_files=limits.files,
                texts=texts,
                before_files=before_files,
            )
    except TooManyFilesError as error:
        raise _too_many(limits) from error
    except FormError as error:
        raise BadRequestError(f"the multipart form is broken: {error}") from error
    except TimeoutError as error:
        raise _too_slow(limits) from error


def _check_files(form: Form, field: str) -> None:
    if not form.files:
        raise BadRequestError(f"the form has no field named {field!r}; it has {_named(form.names)}")


def _joined(files: list[list[bytes]]) -> list[bytes]:
    """Each file in one piece. Its pieces are let go before the next one: only one is in memory twice."""
    joined = []
    for pieces in files:
        joined.append(b"".join(pieces))
        pieces.clear()
    return joined


def _named(names: set[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in sorted(names)[:8])
    return f"{shown}{', ...' if len(names) > 8 else ''}" or "none at all"


def _too_slow(limits: UploadLimits) -> BodyTimeoutError:
    return BodyTimeoutError(f"the body did not arrive within {limits.seconds:g} s")


def _too_many(limits: UploadLimits) -> TooLargeError:
    return TooLargeError(f"too many files in one request: {limits.files} is the most that is taken")


async def read_body(request: Request, limits: UploadLimits) -> bytes:
    """Read a request's whole body, once.

    Raises:
        BodyTimeoutError: it arrives too slowly.
        TooLargeError: it is over the limit; raised before the rest is read.
        UnsupportedTypeError: it is encoded.
        QueueFullError: there is no memory for it now.
    """
    try:
        async with asyncio.timeout(limits.seconds):
            pieces = [piece async for piece in _pieces(request, limits)]
    except TimeoutError as error:
        raise _too_slow(limits) from error
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def read_base64_body(request: Request, limits: UploadLimits) -> bytes:
    """`read_body`, for a body whose image of at most `body_bytes` may be in base64."""
    return await read_body(request, limits.in_base64())


async def _pieces(request: Request, limits: UploadLimits) -> AsyncGenerator[bytes]:
    """Yield the body as it arrives, as long as it is within the limits."""
    limit, size = limits.body_bytes, 0
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in {"", "identity"}:
        raise UnsupportedTypeError(f"a body in the encoding {encoding!r} is not taken; send it as it is")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise TooLargeError(f"the body has {int(declared[:20]):,} bytes; at most {limit:,} are taken")
    receive, more = request.receive, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece, more = message.get("body", b""), message.get("more_body", False)
        size += len(piece)
        if size > limit:
            raise TooLargeError(f"the body has more than {limit:,} bytes, which is the most that is taken")
        if piece:
            limits.reserve(len(piece))
            yield piece


def _image_in_json(body: bytes) -> bytes:
    document = read_object(body, most_parts=_MOST_JSON_PARTS, expected=_EXPECTED_JSON)
    _reject_options(document)
    encoded = document.get("image")
    if not isinstance(encoded, str):
        raise BadRequestError(_EXPECTED_JSON)
    if encoded[:64].lstrip().lower().startswith("data:"):  # the scheme of a URL has no case
        encoded = encoded.partition(",")[2]
    return decode_base64(encoded, name="'image'")


def _reject_options(names: Iterable[str]) -> None:
    """Reject options beside the image, where they would be ignored: they are read from the query only."""
    for name in _OPTIONS.intersection(names):
        raise BadParameterError(f"{name} is taken in the address alone: /detect?{name}=...")


def _content_type(request: Request) -> str:
    header = request.headers.get("content-type", "")
    return header.partition(";")[0].strip().lower()
