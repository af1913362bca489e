"""Where tiles lie, and how what is found in them becomes what is in the picture."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.tiles import Tiling, merge
from service.devices.detector import Detections
from service.errors import BadParameterError
from service.images.pictures import Region

CELL, CLUMP = 1, 2
LEFT, RIGHT = Region(0, 0, 100, 100), Region(80, 0, 100, 100)
SIZE_HW = (100, 180)


def detections(*found: tuple[Sequence[float], int, float]) -> Detections:
    return Detections(
        boxes=np.array([box for box, _, _ in found], np.float32).reshape(-1, 4),
        labels=np.array([label for _, label, _ in found], np.int64),
        scores=np.array([score for _, _, score in found], np.float32),
    )


def merged(*found: Detections, parts: Sequence[Region] = (LEFT, RIGHT)) -> list[tuple[list[float], int, float]]:
    one = merge(parts, found, SIZE_HW, iou_threshold=0.5)
    return list(zip(one.boxes.tolist(), one.labels.tolist(), one.scores.astype(float).round(3).tolist(), strict=True))


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.integers(64, 900),
    st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.8]),
    st.booleans(),
)
def test_tiles_are_of_one_size_and_overlap_enough(
    height: int, width: int, side: int, overlap: float, whole: bool
) -> None:
    parts = Tiling(side, overlap, whole).parts((height, width), most=10**6)
    if max(height, width) <= side:
        assert parts == [Region(0, 0, width, height)]
        return
    if whole:
        assert parts.pop() == Region(0, 0, width, height)
    assert {(part.width, part.height) for part in parts} == {(min(side, width), min(side, height))}
    for starts, length in (({part.left for part in parts}, width), ({part.top for part in parts}, height)):
        ordered = sorted(starts)
        assert ordered[0] == 0
        assert ordered[-1] == max(0, length - side)
        assert all(later - before <= max(1, side * (1 - overlap)) for before, later in pairwise(ordered))
    assert len(parts) == len({part.left for part in parts}) * len({part.top for part in parts})


def test_too_many_tiles_are_rejected_before_they_are_made() -> None:
    tiling = Tiling(800)
    assert len(tiling.parts((4000, 6000), most=61)) == 61
    with pytest.raises(BadParameterError, match=r"6000 x 4000 pixels would be 61 pictures .* at most 60 are taken"):
        tiling.parts((4000, 6000), most=60)
    with pytest.raises(BadParameterError, match="pictures in tiles of 64 px"):
        Tiling(64, 0.8).parts((1_000_000, 1_000_000), most=128)


def test_boxes_come_in_the_picture_s_pixels_best_first() -> None:
    left, right = detections(((10, 10, 30, 30), CELL, 0.5)), detections(((40, 20, 60, 50), CELL, 0.9))
    assert merged(left, right) == [([120, 20, 140, 50], CELL, 0.9), ([10, 10, 30, 30], CELL, 0.5)]


def test_what_two_tiles_show_whole_is_there_once() -> None:
    left, right = detections(((84, 10, 96, 30), CELL, 0.8)), detections(((4.5, 10, 16, 30), CELL, 0.7))
    assert merged(left, right) == [([84, 10, 96, 30], CELL, 0.8)]


def test_a_cut_box_gives_way_to_the_whole_one_whatever_their_scores() -> None:
    cut, whole = ((88, 10, 100, 40), CELL, 0.99), ((8, 10, 48, 41), CELL, 0.6)
    assert merged(detections(cut), detections(whole)) == [([88, 10, 128, 41], CELL, 0.6)]
    as_another_class = ((8, 10, 48, 41), CLUMP, 0.6)
    assert len(merged(detections(cut), detections(as_another_class))) == 2


def test_a_cut_box_stays_where_no_part_shows_it_whole() -> None:
    in_both = detections(((70, 10, 100, 40), CELL, 0.9)), detections(((0, 10, 70, 40), CELL, 0.8))
    assert [box for box, _, _ in merged(*in_both)] == [[70, 10, 100, 40], [80, 10, 150, 40]]
    whole_picture = Region(0, 0, 180, 100)
    found = merged(*in_both, detections(((70, 9, 150, 40), CELL, 0.3)), parts=[LEFT, RIGHT, whole_picture])
    assert found == [([70, 9, 150, 40], CELL, 0.3)]


def test_a_cut_box_does_not_give_way_to_another_object() -> None:
    cut = ((85, 10, 100, 40), CELL, 0.9)
    beside, around = ((15, 12, 45, 40), CELL, 0.8), ((5, 0, 95, 95), CELL, 0.2)
    assert len(merged(detections(cut), detections(beside, around))) == 3


def test_the_picture_s_own_edges_cut_nothing() -> None:
    at_the_edge = detections(((0, 60, 40, 100), CELL, 0.5))
    larger = detections(((0, 58, 42, 100), CELL, 0.4))
    assert merged(at_the_edge, larger, parts=[LEFT, Region(0, 0, 180, 100)]) == [([0, 60, 40, 100], CELL, 0.5)]


def test_nothing_found_is_nothing() -> None:
    assert merged(detections(), detections()) == []
    assert merged(detections(), detections(((10, 10, 30, 30), CELL, 0.5))) == [([90, 10, 110, 30], CELL, 0.5)]


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20), st.integers(8, 30), st.integers(8, 30)), max_size=40),
    st.integers(0, 1000),
)
def test_objects_that_fit_into_the_overlap_are_each_found_once(
    placed: list[tuple[int, int, int, int]], seed: int
) -> None:
    """Each in a cell of 40 px of its own; a part finds what it shows half of, with a score that means nothing."""
    scores = random.Random(seed)
    boxes = {(x, y): (40 * x, 40 * y, 40 * x + width, 40 * y + height) for x, y, width, height in placed}
    size_hw = (21 * 40, 31 * 40)
    parts = Tiling(200, 0.2, whole=False).parts(size_hw, most=1000)
    found = []
    for part in parts:
        left, top, right, bottom = part.xyxy
        shown = []
        for x1, y1, x2, y2 in boxes.values():
            box = max(x1, left), max(y1, top), min(x2, right), min(y2, bottom)
            if box[0] < box[2] and box[1] < box[3]:
                area = (box[2] - box[0]) * (box[3] - box[1])
                if area >= 0.6 * (x2 - x1) * (y2 - y1):
                    score = scores.uniform(0.1, 1)
                    shown.append(((box[0] - left, box[1] - top, box[2] - left, box[3] - top), CELL, score))
        found.append(detections(*shown))
    one = merge(parts, found, size_hw, iou_threshold=0.5)
    assert sorted(map(tuple, one.boxes.tolist())) == sorted(boxes.values())
    assert np.all(np.diff(one.scores) <= 0)
