from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.thresholds import ScoreThresholds, parse_thresholds

SCORES = st.floats(0, 1)
NAMES = st.text("abc :.#,", min_size=1).map(str.strip).filter(bool)


@pytest.mark.parametrize(
    ("text", "others", "of_classes"),
    [
        ("0.5", 0.5, {}),
        ("0", 0, {}),
        (" 1e-1 ", 0.1, {}),
        ("person:0.8", 0, {"person": 0.8}),
        ("0.5,person:0.8", 0.5, {"person": 0.8}),
        ("person:0.8, 0.5", 0.5, {"person": 0.8}),
        ("0.5, traffic light, red: 0.8 ,7:0.2", 0.5, {"traffic light, red": 0.8, "7": 0.2}),
        ("ratio 1:2:0.8", 0, {"ratio 1:2": 0.8}),
    ],
)
def test_thresholds_are_read(text: str, others: float, of_classes: dict[str, float]) -> None:
    assert parse_thresholds(text) == ScoreThresholds(others, of_classes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' has no threshold"),
        ("1.5", "not '1.5'"),
        ("-0.1", "not '-0.1'"),
        ("nan", "not 'nan'"),
        ("person", "'person' has no threshold"),
        ("person:", "not ''"),
        ("person:inf", "not 'inf'"),
        ("person:0.5,", "'' has no threshold"),
        ("0.5,0.6", "two thresholds for every class"),
        ("a:0.5,a:0.5", "'a' has two thresholds"),
        ("a" * 16_385, "at most 16384 characters"),
    ],
)
def test_what_is_wrong_with_others_is_told(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_thresholds(text)
    assert words in str(caught.value)


@given(SCORES, st.dictionaries(st.text("abc .#").map(str.strip).filter(bool), SCORES))
def test_what_is_written_is_read(others: float, of_classes: dict[str, float]) -> None:
    written = ",".join([str(others), *(f"{name}:{threshold}" for name, threshold in of_classes.items())])
    assert parse_thresholds(written) == ScoreThresholds(others, of_classes)
