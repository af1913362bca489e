"""Reading multipart forms (RFC 7578) piece by piece, as they arrive.

The field's name decides what is a file, not whether the part has a filename: many clients send none.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

_MOST_OTHER_FIELDS = 100
_MOST_OTHER_BYTES = 64 * 1024  # in all of them
_MOST_PREAMBLE_BYTES = 8 * 1024  # before the first boundary: mail programs write a line there


class FormError(ValueError):
    """The form is not what its Content-Type says."""


class TooManyFilesError(ValueError):
    """The form has more files than were asked for."""


class Form(NamedTuple):
    """What a form holds.

    Attributes:
        files: the contents of the fields asked for, in order, each in the pieces in which it came.
        names: of the other fields.
        texts: what those of them hold whose texts were asked for; of several of a name the last.
    """

    files: list[list[bytes]]
    names: set[str]
    texts: dict[str, str]


class _Parts:
    """Callbacks of the parser: keeps the pieces of some parts, and the names of the others."""

    def __init__(
        self, field: str, most_files: int, texts: Collection[str], before_files: Callable[[dict[str, str]], None]
    ) -> None:
        self.form = Form([], set(), {})
        self.is_whole = False
        self._field = field
        self._most_files = most_files
        self._texts = texts
        self._before_files = before_files
        self._others = 0
        self._other_bytes = 0
        self._kept: list[bytes] | None = None
        self._name = ""
        self._text_of: str | None = None  # the field whose text is being read
        self._text = b""
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""

    def on_part_begin(self) -> None:
        self._kept, self._text_of, self._text, self._disposition = None, None, b"", b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise FormError("a part of it has no name in its Content-Disposition")
        name = options[b"name"].decode("utf-8", "replace")
        self._name = name
        if name == self._field:
            if len(self.form.files) == self._most_files:
                raise TooManyFilesError
            if not self.form.files:
                self._before_files(self.form.texts)
            self._kept = []
            self.form.files.append(self._kept)
            return
        self._others += 1
        if self._others > _MOST_OTHER_FIELDS:
            raise FormError(f"it has more than {_MOST_OTHER_FIELDS} other fields")
        self.form.names.add(name)
        if name in self._texts:
            self._text_of = name

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._kept is not None:
            self._kept.append(data[start:end])
            return
        self._other_bytes += end - start
        if self._other_bytes > _MOST_OTHER_BYTES:
            raise FormError(
                f"its other fields have more than {_MOST_OTHER_BYTES:,} bytes, with {self._name[:40]!r} among them; "
                f"an image goes into a field named {self._field!r}"
            )
        if self._text_of is not None:
            self._text += data[start:end]

    def on_part_end(self) -> None:
        if self._text_of is not None:
            self.form.texts[self._text_of] = self._text.decode("utf-8", "replace")

    def on_end(self) -> None:
        self.is_whole = True


async def read_form(
    content_type: str,
    pieces: AsyncIterator[bytes],
    *,
    field: str,
    most_files: int,
    texts: Collection[str] = (),
    before_files: Callable[[dict[str, str]], None] = lambda _: None,
) -> Form:
    """Read the parts named `field`, and the names of the others.

    Args:
        content_type: the header.
        pieces: of the body.
        field: name of the parts that are files.
        most_files: most of them.
        texts: names of other fields whose texts are read.
        before_files: gets the texts that have come, before anything of the first file is kept; may raise.

    Raises:
        FormError: it is no form, is broken, or ends before its closing boundary.
        TooManyFilesError: it has more than `most_files` parts of that name; raised before the rest is read.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise FormError("its Content-Type names no boundary")
    parts = _Parts(field, most_files, texts, before_files)
    try:
        parser = MultipartParser(  # a boundary that is too long is an error at once
            boundary,
            {
                "on_part_begin": parts.on_part_begin,
                "on_part_data": parts.on_part_data,
                "on_part_end": parts.on_part_end,
                "on_header_field": parts.on_header_field,
                "on_header_value": parts.on_header_value,
                "on_header_end": parts.on_header_end,
                "on_headers_finished": parts.on_headers_finished,
                "on_end": parts.on_end,
            },
        )
        async for piece in _from_first_boundary(pieces, b"--" + boundary):
            parser.write(piece)
        parser.finalize()
    except FormParserError as error:
        raise FormError(str(error)) from error
    if not parts.is_whole:
        raise FormError("it ends before its closing boundary, --" + boundary.decode("latin-1") + "--")
    return parts.form


async def _from_first_boundary(pieces: AsyncIterator[bytes], delimiter: bytes) -> AsyncGenerator[bytes]:
    """Leave out what precedes the first boundary, as RFC 2046, section 5.1.1, asks for."""
    before: bytes | None = b""
    async for piece in pieces:
        if before is None:
            yield piece
            continue
        before += piece
        at = (b"\n" + before).find(b"\n" + delimiter)
        if at >= 0:
            yield before[at:]
            before = None
        elif len(before) > _MOST_PREAMBLE_BYTES:
            break
    if before and not delimiter.startswith(before):
        raise FormError(f"it does not begin with its boundary, {delimiter.decode('latin-1')}")
