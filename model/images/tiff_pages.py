"""Which of a TIFF file's directories describes the picture."""

from __future__ import annotations

from collections.abc import Iterator

from model.images.errors import BrokenImageError, UnsupportedImageError
from model.images.tags import Directory, read_directory

_SUBFILE_TYPE, _OLD_SUBFILE_TYPE, _WIDTH, _HEIGHT, _PHOTOMETRIC, _STRIP_OFFSETS = 254, 255, 256, 257, 262, 273
_TILE_OFFSETS, _SUB_DIRECTORIES, _DNG_VERSION = 324, 330, 50706
_REDUCED_OR_MASK = 0b101  # of the subfile type
_OLD_REDUCED = 2
_OF_A_SENSOR = frozenset({32803, 34892})  # colour filter array and linear raw, as DNG and others have them
_MOST_DIRECTORIES = 32  # looked at; raw files have up to six


def picture_directory(data: bytes, byte_order: str, is_big: bool, offset: int) -> Directory:
    """The first page's directory, or, if that page is a reduced version of another, the other's.

    Raises:
        BrokenImageError: the first directory cannot be read.
        UnsupportedImageError: a camera's raw file, whose picture still has to be developed.
    """
    first = read_directory(data, byte_order, is_big, offset)
    known = [one for one in _directories(first, offset) if _is_picture(one)]
    is_raw = data[8:10] == b"CR" and not is_big  # Canon's CR2
    is_raw |= any(one.integer(_PHOTOMETRIC, 0) in _OF_A_SENSOR for one in known)
    full = next((one for one in known if not _is_reduced(one)), None)
    if is_raw or (full is None and _DNG_VERSION in first.entries):
        raise UnsupportedImageError("this is a camera raw file; develop it to a JPEG or a TIFF first")
    return full or first


def _is_picture(directory: Directory) -> bool:
    has_size = directory.integer(_WIDTH, 0) > 0 and directory.integer(_HEIGHT, 0) > 0
    return has_size and (_STRIP_OFFSETS in directory.entries or _TILE_OFFSETS in directory.entries)


def _is_reduced(directory: Directory) -> bool:
    is_reduced = bool(directory.integer(_SUBFILE_TYPE, 0) & _REDUCED_OR_MASK)
    return is_reduced or directory.integer(_OLD_SUBFILE_TYPE, 0) == _OLD_REDUCED


def _directories(first: Directory, offset: int) -> Iterator[Directory]:
    """The pages, each followed by its subdirectories; those that cannot be read are left out."""
    seen, pages = {offset}, first
    yield first
    while len(seen) < _MOST_DIRECTORIES:
        for at in (_sub_directories(pages) or ())[:_MOST_DIRECTORIES]:
            if (sub := _unseen(first, at, seen)) is not None:
                yield sub
        following = _unseen(first, pages.next_offset, seen)
        if following is None:
            return
        pages = following
        yield pages


def _sub_directories(directory: Directory) -> tuple[int, ...] | None:
    try:
        return directory.integers(_SUB_DIRECTORIES, most=1 << 16)
    except BrokenImageError:
        return None


def _unseen(first: Directory, at: int, seen: set[int]) -> Directory | None:
    if at == 0 or at in seen or len(seen) >= _MOST_DIRECTORIES:
        return None
    seen.add(at)
    try:
        return read_directory(first.data, first.byte_order, first.is_big, at)
    except BrokenImageError:
        return None
