"""Score thresholds as callers write them: one for every class, and others for some."""

from __future__ import annotations

from typing import NamedTuple

_LONGEST = 16_384  # characters; fits the head of a request, and bounds a body's
_EXPECTED = "should be a number from 0 to 1, or have those of classes too: 0.5,person:0.8"


class ScoreThresholds(NamedTuple):
    """Least scores, 0 to 1.

    Attributes:
        others: of the classes that have none of their own.
        of_classes: by the name of a class, or its id.
    """

    others: float
    of_classes: dict[str, float]


def parse_thresholds(text: str) -> ScoreThresholds:
    """Read `0.5`, `person:0.8`, or several separated by commas. A class's name may hold commas and colons.

    Raises:
        ValueError: with what is wrong with it.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"should have at most {_LONGEST} characters")
    others: float | None = None
    of_classes: dict[str, float] = {}
    name_so_far: list[str] = []  # words of a name that holds commas
    for word in text.split(","):
        words, colon, number = word.rpartition(":")
        if colon:
            name = ",".join([*name_so_far, words]).strip()
            if name in of_classes:
                raise ValueError(f"{name!r} has two thresholds")
            of_classes[name] = parse_threshold(number)
            name_so_far = []
        elif name_so_far or not _is_number(word):
            name_so_far.append(word)
        elif others is None:
            others = parse_threshold(word)
        else:
            raise ValueError("has two thresholds for every class")
    if name_so_far:
        raise ValueError(f"{_EXPECTED}; {','.join(name_so_far)!r} has no threshold")
    return ScoreThresholds(others or 0.0, of_classes)


def parse_threshold(text: str) -> float:
    """Read a single threshold.

    Raises:
        ValueError: it is no number from 0 to 1.
    """
    if not _is_number(text) or not 0 <= float(text) <= 1:
        raise ValueError(f"a threshold is a number from 0 to 1, not {text.strip()!r}")
    return float(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
