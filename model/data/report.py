"""The account of what could not be used of the data."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from model.weights.categories import Categories


@dataclass
class Report:
    """What was left out of the data, or put right, and which images it concerns."""

    source: str
    used_images: int = 0
    used_boxes: int | None = None  # None if not counted
    _names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def note(self, reason: str, name: str) -> None:
        self._names[reason].append(name)

    def note_alike(self, categories: Categories) -> None:
        """Report classes whose names differ in case alone: one class may have been written in two ways."""
        for names in categories.same_but_for_case():
            self.note("classes whose names differ by case alone, learned apart", " and ".join(names))

    def counts(self) -> dict[str, int]:
        return {reason: len(names) for reason, names in self._names.items()}

    def lines(self) -> list[str]:
        """For people: one line of sums, then one for each reason with up to three examples."""
        boxes = "" if self.used_boxes is None else f" with {self.used_boxes} box{'' if self.used_boxes == 1 else 'es'}"
        lines = [f"{self.source}: {self.used_images} image{'' if self.used_images == 1 else 's'}{boxes}"]
        for reason, names in sorted(self._names.items()):
            shown = ", ".join(dict.fromkeys(names[:3])) + (", ..." if len(names) > 3 else "")
            lines.append(f"  {len(names)} x {reason}: {shown}")
        return lines
