from __future__ import annotations

import io
import itertools

import numpy as np
from PIL import Image

from service.images.drawing import class_color, draw, drawing_work, encode
from service.images.pictures import Picture
from tests.support.fakes import red_picture


def test_a_box_is_outlined_in_its_class_colour() -> None:
    drawn = np.asarray(draw(Picture(red_picture(0, (200, 300))), [[50, 100, 150, 180]], [3], ["dog 98%"]))
    assert tuple(drawn[140, 50]) == tuple(drawn[180, 100]) == class_color(3)
    assert tuple(drawn[140, 100]) == (0, 0, 0)  # nothing inside
    assert (drawn[85:100, 50:90] == class_color(3)).all(axis=-1).any()  # the caption's plate above the corner


def test_captions_stay_inside_and_nothing_breaks_at_the_borders() -> None:
    boxes = [[0, 0, 300, 200], [290, 190, 300, 200], [-5, -5, 2, 2], [7, 7, 7, 7]]
    image = draw(Picture(red_picture(0, (200, 300))), boxes, [1, 2, 3, 4], ["a", "b" * 80, "", "é"])
    assert image.size == (300, 200)
    one_pixel = draw(Picture(red_picture(0, (1, 1))), [[0, 0, 1, 1]], [1], ["tiny"])
    assert one_pixel.size == (1, 1)


def test_the_picture_itself_is_not_drawn_on() -> None:
    pixels = red_picture(9)
    draw(Picture(pixels), [[1, 1, 20, 20]], [1], ["x"])
    assert pixels.equal(red_picture(9))


def test_neighbouring_classes_have_colours_that_differ() -> None:
    colors = [np.array(class_color(label), dtype=int) for label in range(1, 91)]
    assert min(np.abs(a - b).max() for a, b in itertools.pairwise(colors)) > 100


def test_encoding() -> None:
    image = Picture(red_picture(200, (8, 9))).to_pil()
    assert Image.open(io.BytesIO(encode(image, "PNG"))).getpixel((0, 0)) == (200, 0, 0)
    assert Image.open(io.BytesIO(encode(image, "JPEG"))).format == "JPEG"


def test_thousands_of_boxes_are_work_for_a_small_picture_too() -> None:
    small = (480, 640)
    assert drawing_work("JPEG", small, boxes=10_000) > drawing_work("JPEG", (6000, 8000), boxes=0)
    assert drawing_work("PNG", small, boxes=100) < 2 * drawing_work("PNG", small, boxes=0)
