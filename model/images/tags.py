"""The tag directories of TIFF 6.0, section 2, and of BigTIFF. EXIF has the same."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from model.images.errors import BrokenImageError

ORIENTATION = 274
_EXIF_HEAD = b"Exif\0\0"
# Types of unsigned integers: BYTE, SHORT, LONG, UNDEFINED, IFD, LONG8, IFD8.
_INTEGERS = {1: "B", 3: "H", 4: "I", 7: "B", 13: "I", 16: "Q", 18: "Q"}
_BYTES_OF_TYPE = {"B": 1, "H": 2, "I": 4, "Q": 8}


@dataclass(frozen=True, slots=True)
class Directory:
    """The tags of one image. Values are read when they are asked for, and no more of them than asked for."""

    data: bytes
    byte_order: str  # "<" or ">"
    is_big: bool
    entries: dict[int, tuple[int, int, bytes]]  # tag to (type, count, the value or its offset)
    next_offset: int

    def integers(self, tag: int, *, most: int) -> tuple[int, ...] | None:
        """A tag's values. None where it is absent, not of integers, or outside the file.

        Raises:
            BrokenImageError: there are more than `most`.
        """
        _, count, _ = self.entries.get(tag, (0, 0, b""))
        if count > most:
            raise BrokenImageError(f"the TIFF tag {tag} has {count:,} values; {most:,} at most have a meaning")
        return self._first(tag, count)

    def integer(self, tag: int, default: int) -> int:
        """A tag's first value, or the default where there is none."""
        values = self._first(tag, 1)
        return values[0] if values else default

    def content(self, tag: int, *, most: int) -> bytes:
        """The bytes of a tag of the type BYTE or UNDEFINED; empty where there is none."""
        return bytes(self.integers(tag, most=most) or ())

    def _first(self, tag: int, number: int) -> tuple[int, ...] | None:
        kind, count, inline = self.entries.get(tag, (0, 0, b""))
        if kind not in _INTEGERS or count < number:
            return None
        size, values = _BYTES_OF_TYPE[_INTEGERS[kind]], inline
        if size * count > len(inline):
            at = int.from_bytes(inline, "little" if self.byte_order == "<" else "big")
            values = self.data[at : at + size * number]
        if len(values) < size * number:
            return None
        return struct.unpack_from(f"{self.byte_order}{number}{_INTEGERS[kind]}", values)


def first_offset(data: bytes) -> tuple[str, bool, int]:
    """Of a file's head: its byte order, whether it is a BigTIFF, and where its first directory is.

    Raises:
        BrokenImageError: it is no such head.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
    try:
        if order and struct.unpack_from(order + "H", data, 2) == (42,):
            return order, False, struct.unpack_from(order + "I", data, 4)[0]
        if order and struct.unpack_from(order + "HHH", data, 2) == (43, 8, 0):
            return order, True, struct.unpack_from(order + "Q", data, 8)[0]
    except struct.error:
        pass
    raise BrokenImageError("the TIFF header is broken")


def read_directory(data: bytes, byte_order: str, is_big: bool, offset: int) -> Directory:
    """The directory at an offset. Of a tag that is there twice the first counts, as in libtiff.

    Raises:
        BrokenImageError: it reaches out of the file.
    """
    count_format, entry_format, next_format = ("Q", "HHQ8s", "Q") if is_big else ("H", "HHI4s", "I")
    count_bytes = struct.calcsize(byte_order + count_format)
    entry_bytes = struct.calcsize(byte_order + entry_format)
    try:
        (count,) = struct.unpack_from(byte_order + count_format, data, offset)
        end = offset + count_bytes + count * entry_bytes
        if end > len(data):
            raise BrokenImageError("the TIFF image is truncated: a directory reaches out of the file")
        listed = struct.iter_unpack(byte_order + entry_format, data[offset + count_bytes : end])
    except (struct.error, OverflowError) as error:
        raise BrokenImageError("the TIFF image is truncated: a directory lies outside of the file") from error
    entries: dict[int, tuple[Any, Any, Any]] = {}
    for tag, kind, number, inline in listed:
        entries.setdefault(tag, (kind, number, inline))
    following = data[end : end + struct.calcsize(byte_order + next_format)]
    next_offset = int.from_bytes(following, "little" if byte_order == "<" else "big")
    return Directory(data=data, byte_order=byte_order, is_big=is_big, entries=entries, next_offset=next_offset)


def exif_orientation(exif: bytes) -> int:
    """1 to 8 (CIPA DC-008, section 4.6.4 A); 1 where the EXIF data do not say it, or are damaged."""
    exif = exif.removeprefix(_EXIF_HEAD)
    try:
        orientation = read_directory(exif, *first_offset(exif)).integer(ORIENTATION, 1)
    except BrokenImageError:
        return 1
    return orientation if 1 <= orientation <= 8 else 1
