from __future__ import annotations

import pytest

from model.categories import Categories

PETS = Categories(("__background__", "Cat", "N/A", "hot dog"))


def test_objects_are_neither_background_nor_unused():
    assert PETS.objects() == {1: "Cat", 3: "hot dog"}
    assert len(PETS) == 4
    assert PETS.name(3) == "hot dog"


def test_of_objects_and_unnamed():
    assert Categories.of_objects(["a", "b"]).names == ("__background__", "a", "b")
    assert Categories.unnamed(3).objects() == {1: "class 1", 2: "class 2"}


@pytest.mark.parametrize(
    ("wanted", "labels"),
    [(["cat"], {1}), ([" CAT ", "Hot Dog"], {1, 3}), (["3"], {3}), (["cat", "1"], {1}), ([], set())],
)
def test_labels_by_name_or_number(wanted, labels):
    assert PETS.labels(wanted) == labels


@pytest.mark.parametrize("word", ["dog", "0", "2", "4", "N/A", "__background__", "-1", ""])
def test_the_first_unknown_word_is_told(word):
    with pytest.raises(KeyError) as caught:
        PETS.labels(["cat", word, "also wrong"])
    assert caught.value.args == (word,)


@pytest.mark.parametrize("names", [(), ("__background__",)])
def test_a_detector_needs_a_class(names):
    with pytest.raises(ValueError, match="at least one class"):
        Categories(names)
