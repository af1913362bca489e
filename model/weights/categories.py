"""Class names: what the detector's integer labels mean."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

BACKGROUND_NAME = "__background__"
# torchvision's COCO list marks ids that the data set skips with this name.
UNUSED_NAME = "N/A"


@dataclass(frozen=True)
class Categories:
    """The names of all K classes by label; label 0 is the background."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise ValueError("a detector needs the background and at least one class")

    @classmethod
    def of_objects(cls, names: Sequence[str]) -> Categories:
        """From the names of the objects alone: the first gets label 1."""
        return cls((BACKGROUND_NAME, *names))

    @classmethod
    def unnamed(cls, num_classes: int) -> Categories:
        """Stand-in names for weights that come without any."""
        return cls.of_objects([f"class {label}" for label in range(1, num_classes)])

    def __len__(self) -> int:
        return len(self.names)

    def name(self, label: int) -> str:
        return self.names[label]

    def objects(self) -> dict[int, str]:
        """Label to name of every class that a detection can have."""
        return {label: name for label, name in enumerate(self.names) if label > 0 and name != UNUSED_NAME}

    def labels(self, wanted: Iterable[str]) -> frozenset[int]:
        """The labels meant by names or ids, one or several in a text, separated by commas.

        A name as it is written comes first, then an id, then a name in another case or spelling of Unicode, if it is
        the only one. It means every class that has it. It may hold commas: the longest run of words that is one wins.
        "#3" is always the id 3.

        Raises:
            KeyError: with the first word that means no class, and, if it is ambiguous, the names that it may mean.
        """
        return frozenset(label for text in wanted for label in self._labels_in(text))

    def same_but_for_case(self) -> list[tuple[str, ...]]:
        """The names that differ by case alone, together."""
        return [tuple(names) for names in self._by_folded_name().values() if len(names) > 1]

    def _labels_in(self, text: str) -> Iterator[int]:
        exact: dict[str, list[int]] = {}
        for label, name in self.objects().items():
            exact.setdefault(name.strip(), []).append(label)
        words = text.split(",")
        longest = 1 + max((name.count(",") for name in exact), default=0)
        start = 0
        while start < len(words):
            for end in range(min(len(words), start + longest), start + 1, -1):
                if labels := exact.get(",".join(words[start:end]).strip()):
                    break
            else:
                end, labels = start + 1, self._labels_of(words[start], exact)
            yield from labels
            start = end

    def _labels_of(self, word: str, exact: Mapping[str, list[int]]) -> list[int]:
        numbers = {str(label): [label] for label in self.objects()}
        text = word.strip()
        if text.startswith("#") and text[1:] in numbers:
            return numbers[text[1:]]
        if labels := exact.get(text, numbers.get(text)):
            return labels
        alike = self._by_folded_name().get(_folded(text), [])
        if len(alike) != 1:
            raise KeyError(word, *alike)
        return exact[alike[0].strip()]

    def _by_folded_name(self) -> dict[str, list[str]]:
        folded: dict[str, list[str]] = {}
        for name in self.objects().values():
            alike = folded.setdefault(_folded(name), [])
            if name not in alike:
                alike.append(name)
        return folded


def _folded(name: str) -> str:
    """In one case, and in one of the two spellings that Unicode has of "é"."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name.strip()).casefold())
