from __future__ import annotations

import pytest

from model.weights.categories import Categories

PETS = Categories(("__background__", "Cat", "N/A", "hot dog"))


def test_objects_are_neither_background_nor_unused() -> None:
    assert PETS.objects() == {1: "Cat", 3: "hot dog"}
    assert len(PETS) == 4
    assert PETS.name(3) == "hot dog"


def test_of_objects_and_unnamed() -> None:
    assert Categories.of_objects(["a", "b"]).names == ("__background__", "a", "b")
    assert Categories.unnamed(3).objects() == {1: "class 1", 2: "class 2"}


@pytest.mark.parametrize(
    ("wanted", "labels"),
    [(["cat"], {1}), ([" CAT ", "Hot Dog"], {1, 3}), (["3"], {3}), (["cat", "1"], {1}), ([], set())],
)
def test_labels_by_name_or_number(wanted: list[str], labels: set[int]) -> None:
    assert PETS.labels(wanted) == labels


@pytest.mark.parametrize("word", ["dog", "0", "2", "4", "N/A", "__background__", "-1", ""])
def test_the_first_unknown_word_is_told(word: str) -> None:
    with pytest.raises(KeyError) as caught:
        PETS.labels(["cat", word, "also wrong"])
    assert caught.value.args == (word,)


ODD = Categories(("__background__", "3", "rbc", "RBC", "platelet, small", "small", "Cell", "#2"))


@pytest.mark.parametrize(
    ("wanted", "labels"),
    [
        (["rbc"], {2}),
        (["RBC"], {3}),
        (["3"], {1}),  # a name first
        (["#3"], {3}),  # always an id
        (["1", "2"], {1, 2}),
        (["#2"], {2}),
        (["CELL"], {6}),
        (["platelet, small"], {4}),
        (["platelet, small,small"], {4, 5}),
        (["rbc, platelet, small , Cell"], {2, 4, 6}),
        (["small", "platelet, small"], {4, 5}),
    ],
)
def test_a_name_as_written_wins_then_an_id_then_another_case(wanted: list[str], labels: set[int]) -> None:
    assert ODD.labels(wanted) == labels


def test_a_name_in_another_case_that_two_classes_have_is_ambiguous() -> None:
    with pytest.raises(KeyError) as caught:
        ODD.labels(["Rbc"])
    assert caught.value.args == ("Rbc", "rbc", "RBC")
    assert ODD.same_but_for_case() == [("rbc", "RBC")]
    assert PETS.same_but_for_case() == []


@pytest.mark.parametrize("names", [(), ("__background__",)])
def test_a_detector_needs_a_class(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="at least one class"):
        Categories(names)


@pytest.mark.parametrize(
    ("wanted", "labels"),
    [(["cat"], {1, 2}), (["CAT"], {1, 2}), (["2"], {2}), (["#1"], {1}), (["cat,dog"], {1, 2, 3}), (["a, b"], {4, 5})],
)
def test_a_name_means_every_class_that_has_it(wanted: list[str], labels: set[int]) -> None:
    """Names that a user gives to foreign weights may be the same."""
    same = Categories(("__background__", "cat", "cat", "dog", "a, b", "a, b"))
    assert same.labels(wanted) == labels
    assert same.same_but_for_case() == []


def test_a_name_may_be_spelt_as_either_form_of_unicode() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for one, other in ((composed, decomposed), (decomposed, composed)):
        assert Categories.of_objects(["tea", one]).labels([other]) == {2}
        assert Categories.of_objects(["tea", one]).labels([other.upper()]) == {2}
    both = Categories.of_objects([composed, decomposed])
    assert both.labels([composed]) == {1}
    assert both.labels([decomposed]) == {2}
