"""Class names: what the detector's integer labels mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
        """The labels meant by names (in any case) or by numbers.

        Raises:
            KeyError: with the first that is neither a name nor the number of a class.
        """
        by_name = {name.casefold(): label for label, name in self.objects().items()}
        numbers = {str(label): label for label in self.objects()}
        found = set()
        for word in wanted:
            label = by_name.get(word.strip().casefold(), numbers.get(word.strip()))
            if label is None:
                raise KeyError(word)
            found.add(label)
        return frozenset(found)
