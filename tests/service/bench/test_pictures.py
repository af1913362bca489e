from __future__ import annotations

import io

from PIL import Image

from service.bench.pictures import jpeg


def test_the_picture_has_the_size_of_a_photograph() -> None:
    data = jpeg((480, 640))
    assert 90_000 < len(data) < 120_000
    assert Image.open(io.BytesIO(data)).size == (640, 480)
