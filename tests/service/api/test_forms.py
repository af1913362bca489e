"""Multipart forms as clients write them, and broken ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.forms import Form, FormError, TooManyFilesError, read_form

TYPE = "multipart/form-data; boundary=b"
FILE = b"\xff\xd8 no UTF-8 \r\n--not the boundary\r\n\x00\xfe"


def part(disposition: bytes, content: bytes = FILE, headers: bytes = b"") -> bytes:
    return b"--b\r\nContent-Disposition: form-data; " + disposition + b"\r\n" + headers + b"\r\n" + content + b"\r\n"


def read(
    *parts: bytes, end: bytes = b"--b--\r\n", content_type: str = TYPE, most: int = 4, cuts: Sequence[int] = ()
) -> Form:
    body = b"".join(parts) + end

    async def pieces() -> AsyncIterator[bytes]:
        edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
        for start, stop in pairwise(edges):
            yield body[start:stop]

    return asyncio.run(read_form(content_type, pieces(), field="file", most_files=most))


def contents(form: Form) -> list[bytes]:
    return [b"".join(pieces) for pieces in form.files]


@pytest.mark.parametrize(
    "disposition",
    [
        b'name="file"; filename="a.jpg"',
        b'name="file"',  # npm's form-data, superagent, aiohttp, requests with (None, bytes), .NET, generated clients
        b"name=file",
        b"name=\"file\"; filename*=utf-8''%E5%9B%BE.jpg",
        b'name="file"; filename=""',
    ],
)
@pytest.mark.parametrize("headers", [b"", b"Content-Type: image/jpeg\r\n", b"content-type: text/plain\r\n"])
def test_a_part_named_file_is_a_file_whatever_it_says_of_a_filename(disposition: bytes, headers: bytes) -> None:
    assert contents(read(part(disposition, headers=headers))) == [FILE]


@given(st.lists(st.integers(0, 400), max_size=8))
def test_pieces_may_be_cut_anywhere(cuts: list[int]) -> None:
    form = read(part(b'name="a"', b"1"), part(b'name="file"'), part(b'name="file"', b""), cuts=cuts)
    assert contents(form) == [FILE, b""]
    assert form.names == {"a"}


@given(st.lists(st.integers(0, 400), max_size=8))
@pytest.mark.parametrize(
    "before", [b"", b"\r\n", b"\n", b"A message of several parts, not --b.\r\n", b"-\r\n--a\r\n\r\n"]
)
def test_what_precedes_the_first_boundary_is_left_out(before: bytes, cuts: list[int]) -> None:
    form = read(before + part(b'name="file"'), part(b'name="file"', b"2"), end=b"--b--\r\nand after", cuts=cuts)
    assert contents(form) == [FILE, b"2"]


@pytest.mark.parametrize("body", [b"--x\r\n", b"{}", b"x" * 20_000 + b"\r\n--b--"])
def test_a_form_that_does_not_begin_with_its_boundary_says_so(body: bytes) -> None:
    with pytest.raises(FormError, match="does not begin with its boundary, --b"):
        read(end=body, cuts=[10_000])


@pytest.mark.parametrize(
    ("end", "parts"), [(b"", [part(b'name="file"')]), (b"--b", [part(b'name="file"')]), (b"", []), (b"--", [])]
)
def test_a_form_that_is_not_closed_says_so(end: bytes, parts: list[bytes]) -> None:
    with pytest.raises(FormError, match="ends before its closing boundary, --b--"):
        read(*parts, end=end)


@pytest.mark.parametrize(
    ("body", "content_type", "told"),
    [
        (b"", "multipart/form-data", "names no boundary"),
        (b"", "multipart/form-data; boundary=" + "b" * 257, "Boundary length 257"),
        (part(b"filename=a"), TYPE, "no name"),
        (b"--b\r\nX: " + b"y" * 100_000, TYPE, "header"),
        (part(b'name="a"', b"") * 101, TYPE, "more than 100 other fields"),
        (part(b'name="image"', bytes(70_000)), TYPE, "'image' among them; an image goes into a field named 'file'"),
    ],
)
def test_a_broken_form_says_why(body: bytes, content_type: str, told: str) -> None:
    with pytest.raises(FormError, match=f"(?i){told}"):
        read(body, content_type=content_type)


def test_no_more_files_are_read_than_were_asked_for() -> None:
    assert len(read(part(b'name="file"'), part(b'name="file"'), most=2).files) == 2
    with pytest.raises(TooManyFilesError):
        read(part(b'name="file"') * 3, b"no form at all", end=b"", most=2)
