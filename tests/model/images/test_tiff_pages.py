from __future__ import annotations

import numpy as np
import pytest

from model.images.decoding import decode
from model.images.errors import UnsupportedImageError
from tests.support.image_files import Tiff, picture

MOST = 1 << 26
PIXELS = picture()


def first_thumbnail(*, sub: bool, main: int = 2) -> bytes:
    made = Tiff()
    full = made.directory([*made.image_tags(PIXELS, photometric=main), (254, 4, [0])])
    small = [*made.image_tags(PIXELS[::4, ::4].copy()), (254, 4, [1])]
    if sub:
        return made.file(made.directory([*small, (330, 4, [full])]))
    return made.file(made.directory(small, following=full))


@pytest.mark.parametrize("sub", [False, True])
def test_a_reduced_first_page_is_passed_over(sub: bool) -> None:
    np.testing.assert_array_equal(decode(first_thumbnail(sub=sub), max_pixels=MOST), PIXELS)


@pytest.mark.parametrize("main", [32803, 34892])
@pytest.mark.parametrize("sub", [False, True])
def test_a_camera_s_raw_file_is_named(sub: bool, main: int) -> None:
    with pytest.raises(UnsupportedImageError, match="camera raw"):
        decode(first_thumbnail(sub=sub, main=main), max_pixels=MOST)


def test_directories_that_refer_to_each_other_end() -> None:
    made = Tiff()
    page = [*made.image_tags(PIXELS), (254, 4, [1]), (330, 4, [8, 9, 10])]
    first = made.directory(page, following=made.directory(page, following=8))
    np.testing.assert_array_equal(decode(made.file(first), max_pixels=MOST), PIXELS)
