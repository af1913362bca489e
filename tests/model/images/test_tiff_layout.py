from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from model.images.decoding import decode
from model.images.errors import BrokenImageError, ImageTooLargeError, UnsupportedImageError
from tests.support.image_files import Tiff, picture, tiff

MOST = 1 << 26
Array = np.ndarray[Any, Any]


def test_strips_that_lack_their_sizes_are_taken_whole() -> None:
    pixels = picture(16, 24)
    made = Tiff()
    tags = [tag for tag in made.image_tags(pixels) if tag[0] not in {278, 279}]
    np.testing.assert_array_equal(decode(made.file(made.directory(tags)), max_pixels=MOST), pixels)


def with_tags(pixels: Array, *changed: tuple[int, int, list[int]]) -> bytes:
    """A TIFF of one strip with other values in some tags."""
    made = Tiff()
    tags = {number: (number, kind, values) for number, kind, values in made.image_tags(pixels)}
    tags |= {tag[0]: tag for tag in changed}
    return made.file(made.directory(list(tags.values())))


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ([(273, 4, [1 << 31])], BrokenImageError),  # outside of the file
        ([(273, 4, [])], BrokenImageError),
        ([(278, 4, [0])], BrokenImageError),
        ([(256, 4, [0])], BrokenImageError),
        ([(256, 4, [1 << 31])], ImageTooLargeError),
        ([(278, 4, [1]), (256, 4, [4]), (257, 4, [200_000])], ImageTooLargeError),  # strips
        ([(322, 4, [16]), (323, 4, [1 << 30]), (324, 4, [8])], ImageTooLargeError),  # a tile of many gigabytes
        ([(322, 4, [1]), (323, 4, [1]), (324, 4, [8]), (256, 4, [1000]), (257, 4, [1000])], ImageTooLargeError),
        ([(277, 3, [60_000])], UnsupportedImageError),
        ([(258, 3, [8, 8, 16])], UnsupportedImageError),
        ([(259, 3, [6])], UnsupportedImageError),  # the JPEG of TIFF 5
        ([(259, 3, [60_000])], UnsupportedImageError),
        ([(262, 3, [8])], UnsupportedImageError),
        ([(262, 3, [6])], UnsupportedImageError),  # YCbCr without JPEG
        ([(259, 3, [5]), (317, 3, [3])], UnsupportedImageError),  # a predictor of floats
        ([(259, 3, [8])], BrokenImageError),  # not deflated
    ],
    ids=str,
)
def test_tags_without_sense_are_rejected(changed: list[tuple[int, int, list[int]]], error: type[Exception]) -> None:
    with pytest.raises(error):
        decode(with_tags(picture(16, 24), *changed), max_pixels=MOST)


def test_strips_that_overlap_are_rejected_where_they_add_up_to_more_than_the_file() -> None:
    made = Tiff()
    at = made.add(bytes(5000))
    tags = [(256, 4, [8]), (257, 4, [100]), (258, 3, [8]), (259, 3, [5]), (262, 3, [1]), (273, 4, [at] * 100)]
    data = made.file(made.directory([*tags, (277, 3, [1]), (278, 4, [1]), (279, 4, [5000] * 100)]))
    with pytest.raises(BrokenImageError, match="overlap"):
        decode(data, max_pixels=MOST)


def test_every_directory_that_is_cut_is_broken() -> None:
    data = tiff(picture(16, 24))
    (first,) = struct.unpack_from("<I", data, 4)
    for end in (4, 7, 8, first, first + 1, first + 30):
        with pytest.raises(BrokenImageError):
            decode(data[:end], max_pixels=MOST)
