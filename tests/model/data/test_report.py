from __future__ import annotations

from model.data.report import Report
from model.weights.categories import Categories


def test_each_reason_has_a_line_with_up_to_three_names() -> None:
    report = Report("photos train", used_images=7, used_boxes=9)
    for name in ("a", "b", "c", "d"):
        report.note("image broken", name)
    report.note("box clipped", "e")
    report.note("box clipped", "e")
    assert report.lines() == [
        "photos train: 7 images with 9 boxes",
        "  2 x box clipped: e",
        "  4 x image broken: a, b, c, ...",
    ]
    assert report.counts() == {"image broken": 4, "box clipped": 2}


def test_boxes_that_nobody_counted_are_not_told_as_none() -> None:
    assert Report("drawn", used_images=3).lines() == ["drawn: 3 images"]


def test_one_is_told_as_one() -> None:
    assert Report("drawn", used_images=1, used_boxes=1).lines() == ["drawn: 1 image with 1 box"]


def test_classes_that_differ_by_case_alone_are_told_together() -> None:
    report = Report("photos")
    report.note_alike(Categories.of_objects(["Dog", "cat", "dog", "DOG"]))
    assert report.counts() == {"classes whose names differ by case alone, learned apart": 1}
    assert report.lines()[1].endswith(": Dog and dog and DOG")
