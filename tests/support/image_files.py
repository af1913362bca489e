"""Image files that Pillow does not write."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from model.images.decoding import decode


def picture(height: int = 48, width: int = 64) -> np.ndarray[Any, Any]:
    """A smooth colour picture with no symmetry, uint8 `[H, W, 3]`."""
    y, x = np.mgrid[0:height, 0:width]
    red, green, blue = 250 * x // width, 250 * y // height, 250 * (x + 3 * y) // (width + 3 * height)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def saved(pixels: np.ndarray[Any, Any] | Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes, crc: int | None = None) -> bytes:
    """Of a PNG."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content) if crc is None else crc)
    )


def segment(kind: int, content: bytes, length: int | None = None) -> bytes:
    """Of a JPEG."""
    return bytes([0xFF, kind]) + struct.pack(">H", len(content) + 2 if length is None else length) + content


Tag = tuple[int, int, Sequence[int]]  # number, type, values


class Tiff:
    """A TIFF file, written part by part. `pages` and sub-directories are what `add` returned."""

    def __init__(self, byte_order: str = "<", *, big: bool = False) -> None:
        self._order, self._big = byte_order, big
        self._body = bytearray(16 if big else 8)

    def add(self, content: bytes) -> int:
        """Put bytes into the file and tell where they are."""
        self._body += b"\0" * (len(self._body) % 2)
        at = len(self._body)
        self._body += content
        return at

    def directory(self, tags: Sequence[Tag], *, following: int = 0) -> int:
        """Put a directory into the file, after those that it refers to."""
        room, offset_format, entry_format = (8, "Q", "HHQ") if self._big else (4, "I", "HHI")
        entries = b""
        for tag, kind, values in sorted(tags):
            letter = {1: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}[kind]
            raw = struct.pack(f"{self._order}{len(values)}{letter}", *values)
            if len(raw) > room:
                raw = struct.pack(self._order + offset_format, self.add(raw))
            entries += struct.pack(self._order + entry_format, tag, kind, len(values)) + raw.ljust(room, b"\0")
        count = struct.pack(self._order + ("Q" if self._big else "H"), len(tags))
        return self.add(count + entries + struct.pack(self._order + offset_format, following))

    def file(self, first: int) -> bytes:
        mark = b"II" if self._order == "<" else b"MM"
        if self._big:
            head = mark + struct.pack(self._order + "HHHQ", 43, 8, 0, first)
        else:
            head = mark + struct.pack(self._order + "HI", 42, first)
        return head + bytes(self._body[len(head) :])

    def image_tags(
        self, pixels: np.ndarray[Any, Any], *, bits: int = 8, photometric: int = 2, raw: bytes = b""
    ) -> list[Tag]:
        """The tags of an image of one strip, which is put into the file."""
        height, width, *rest = pixels.shape
        samples = rest[0] if rest else 1
        content = raw or pixels.tobytes()
        return [
            (256, 4, [width]),
            (257, 4, [height]),
            (258, 3, [bits] * samples),
            (259, 3, [1]),
            (262, 3, [photometric]),
            (273, 4, [self.add(content)]),
            (277, 3, [samples]),
            (278, 4, [height]),
            (279, 4, [len(content)]),
        ]


def tiff(pixels: np.ndarray[Any, Any], *extra: Tag, byte_order: str = "<", big: bool = False, **options: Any) -> bytes:
    """A TIFF of one uncompressed strip."""
    made = Tiff(byte_order, big=big)
    return made.file(made.directory([*made.image_tags(pixels, **options), *extra]))


def given_memory(data: bytes) -> tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]:
    """A file's picture, and the memory that its decoder asked for."""
    given: list[np.ndarray[Any, Any]] = []

    def allocate(shape: tuple[int, int, int]) -> np.ndarray[Any, Any]:
        given.append(np.zeros(shape, np.uint8))
        return given[-1]

    return decode(data, max_pixels=10**6, allocate=allocate), given
