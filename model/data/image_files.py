"""Which files are images, by their names alone, and how a name that was written down finds its file."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePath

# In the order in which they are preferred where several files share a name.
IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif"),
    *(".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp", ".mpo", ".dib", ".apng", ".avifs"),
)

_Grouped = dict[str, list[Path]]


def is_companion(path: PurePath) -> bool:
    """Whether a file is no one's own: hidden, as a Mac's "._name.jpg", or in a folder that is, or in `__MACOSX`.

    Args:
        path: relative to the folder that was named, which may itself be hidden.
    """
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def is_image(path: PurePath) -> bool:
    return path.suffix.lower() in IMAGE_ENDINGS


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and below, in order, without companions. Links are followed, each folder once."""
    return sorted(_walk(folder))


def _walk(folder: Path) -> Iterator[Path]:
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_companion(PurePath(name))]
        yield from (Path(place, name) for name in names if not is_companion(PurePath(name)))


def contents(folder: Path) -> str:
    """For messages: how many files of each ending a folder and those below it have."""
    files = files_below(folder)
    counts = Counter((file.suffix.lower() or "file", str(file.parent.relative_to(folder))) for file in files)
    shown = [f"{n} x {ending}" + ("" if where == "." else f" in {where}") for (ending, where), n in counts.items()]
    told = f"It has {', '.join(shown[:8])}{', ...' if len(shown) > 8 else ''}" if shown else "It is empty"
    images = {file.stem for file in files if is_image(file)}
    is_yolo = any(file.suffix.lower() == ".txt" and file.stem in images for file in files)
    return told + (". Text files of YOLO are not read: convert them to COCO" if is_yolo else "")


class ImageIndex:
    """The images in some folders and below, by their names.

    Unicode has two spellings of "é", of which a Mac's disk prefers one and JSON the other: here they are the same.

    Args:
        folders: where to look. They are read when a name is first asked for.
        preferred: names of folders to prefer where several files have the name.
    """

    def __init__(self, folders: Iterable[Path], preferred: Iterable[str] = ()) -> None:
        self._folders = tuple(folders)
        self._preferred = frozenset(preferred)

    def named(self, stated: PurePath, *, any_case: bool = False) -> Path | None:
        """The file of this name, of several the one in the folders stated; None if there is none, or no telling."""
        return self._best(stated, self._by_name[any_case].get(_folded(stated.name, any_case=any_case), ()))

    def with_stem(self, stated: PurePath, *, any_case: bool = False) -> Path | None:
        """The image of this name, whose own ending counts for nothing; of several, by the order of endings."""
        found = self._by_stem[any_case].get(_folded(stated.stem, any_case=any_case), ())
        for ending in IMAGE_ENDINGS:
            if best := self._best(stated, [path for path in found if path.suffix.lower() == ending]):
                return best
        return None

    def _best(self, stated: PurePath, found: Iterable[Path]) -> Path | None:
        ranked = defaultdict(list)
        for path in found:
            ranked[self._rank(stated, path)].append(path)
        best = ranked[max(ranked)] if ranked else []
        return best[0] if len(best) == 1 else None

    def _rank(self, stated: PurePath, path: Path) -> tuple[int, bool]:
        """How many folders before the name are those stated, and whether a preferred one is among the others."""
        same = 0
        for one, other in zip(reversed(stated.parent.parts), reversed(path.parent.parts), strict=False):
            if _folded(one) != _folded(other):
                break
            same += 1
        return same, not self._preferred.isdisjoint(path.parent.parts)

    @cached_property
    def _files(self) -> list[Path]:
        return list(dict.fromkeys(path for folder in self._folders for path in files_below(folder) if is_image(path)))

    @cached_property
    def _by_name(self) -> tuple[_Grouped, _Grouped]:
        """As written, and in any case."""
        return _grouped(self._files, lambda path: path.name)

    @cached_property
    def _by_stem(self) -> tuple[_Grouped, _Grouped]:
        """As written, and in any case."""
        return _grouped(self._files, lambda path: path.stem)


def _grouped(files: Iterable[Path], name: Callable[[Path], str]) -> tuple[_Grouped, _Grouped]:
    as_written: _Grouped = {}
    in_any_case: _Grouped = {}
    for path in files:
        as_written.setdefault(_folded(name(path)), []).append(path)
        in_any_case.setdefault(_folded(name(path), any_case=True), []).append(path)
    return as_written, in_any_case


def _folded(name: str, *, any_case: bool = False) -> str:
    composed = unicodedata.normalize("NFC", name)
    return unicodedata.normalize("NFC", composed.casefold()) if any_case else composed
