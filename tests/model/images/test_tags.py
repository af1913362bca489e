from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.images.errors import BrokenImageError
from model.images.tags import exif_orientation, first_offset, read_directory
from tests.support.image_files import Tiff


@pytest.mark.parametrize("big", [False, True])
def test_values_are_read_in_the_entry_or_behind_it(big: bool) -> None:
    made = Tiff(big=big)
    first = made.directory([(256, 4, [7]), (273, 4, list(range(100, 140))), (258, 3, [8, 8, 9])])
    data = made.file(first)
    directory = read_directory(data, *first_offset(data))
    assert directory.integer(256, 0) == 7
    assert directory.integers(273, most=40) == tuple(range(100, 140))
    assert directory.integer(273, 0) == 100
    assert directory.integers(258, most=4) == (8, 8, 9)
    assert directory.integers(999, most=9) is None
    assert directory.integer(999, 5) == 5
    with pytest.raises(BrokenImageError, match="tag 273 has 40 values; 39 at most"):
        directory.integers(273, most=39)


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"II*\0\x10\0\0\0", ("<", False, 16)),
        (b"MM\0*\0\0\0\x10", (">", False, 16)),
        (b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0", ("<", True, 16)),
    ],
)
def test_the_head_tells_order_kind_and_place(head: bytes, found: tuple[str, bool, int]) -> None:
    assert first_offset(head) == found
    for wrong in (head[:-1], b"XX" + head[2:], head[:2] + b"\0\0" + head[4:]):
        with pytest.raises(BrokenImageError, match="header"):
            first_offset(wrong)


@given(data=st.binary(max_size=60), order=st.sampled_from("<>"), big=st.booleans(), offset=st.integers(0, 1 << 63))
def test_whatever_the_bytes_a_directory_is_read_or_broken(data: bytes, order: str, big: bool, offset: int) -> None:
    try:
        directory = read_directory(data, order, big, offset)
    except BrokenImageError:
        return
    for tag in directory.entries:
        directory.integer(tag, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_exif(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = exif.tobytes()
    assert exif_orientation(content) == exif_orientation(content.removeprefix(b"Exif\0\0")) == orientation


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_is_none_turns_nothing(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert exif_orientation(exif.tobytes()) == exif_orientation(b"") == exif_orientation(b"Exif\0\0MM\0*junk") == 1
