"""PNG (third edition): chunks that are not needed for the pixels are left out, Pillow decodes the rest."""

from __future__ import annotations

import struct
import zlib

from model.images.errors import BrokenImageError, ImageTooLargeError, UnsupportedImageError
from model.images.opened import OpenedImage, pillow_bytes, pillow_image, write_rgb
from model.images.tags import exif_orientation

# Inflating and undoing the filters: 0.8 s for 67 million bytes of samples, and a fifth more where they are interlaced.
_TIME_OF_BYTE, _TIME_OF_INTERLACED_BYTE = 0.85, 1.0
_BYTES_OF_PIXEL = 5  # Pillow's image has four
MAGIC = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PALETTE = 3
_PIXELS = b"IDAT"
_MOST_CHUNKS = 10_000  # beside those of pixels
_MOST_PIXEL_CHUNKS = 100_000  # 32 MiB in the smallest pieces that encoders are seen to write


def open_png(data: bytes) -> OpenedImage:
    """Read the chunks.

    Raises:
        BrokenImageError, UnsupportedImageError, ImageTooLargeError
    """
    header, needed, orientation = _walk(data)
    if len(header) != 13:
        raise BrokenImageError("the PNG image's header is broken")
    width, height, bits, color_type = struct.unpack(">IIBB", header[:10])
    sample_bytes = (width * bits * _SAMPLES.get(color_type, 1) + 7) // 8 * height
    time_of_byte = _TIME_OF_INTERLACED_BYTE if header[12] else _TIME_OF_BYTE
    return OpenedImage(
        format="PNG",
        width=width,
        height=height,
        orientation=orientation,
        sample_bytes=sample_bytes,
        work=round(time_of_byte * sample_bytes),
        working_bytes=pillow_bytes(width * height, _BYTES_OF_PIXEL, len(data)),
        write=lambda out: write_rgb(pillow_image(b"".join(needed), "PNG"), out),
    )


def _walk(data: bytes) -> tuple[bytes, list[bytes | memoryview], int]:
    """The header's content, the parts of the same file without ancillary chunks, and the orientation.

    What is wrong with an ancillary chunk is no reason to reject the pixels, and no chunk of them changes the pixels:
    transparency is dropped, and colour profiles are not applied.
    """
    view = memoryview(data)
    header, orientation, others, of_pixels, at, kept_from = b"", 1, 0, 0, len(MAGIC), 0
    needed: list[bytes | memoryview] = []
    has_palette = False
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 12 + length
        of_pixels, others = of_pixels + (kind == _PIXELS), others + (kind != _PIXELS)
        if others > _MOST_CHUNKS or of_pixels > _MOST_PIXEL_CHUNKS:
            raise ImageTooLargeError("the PNG image has too many chunks")
        is_needed = kind in {b"IHDR", _PIXELS} or (kind == b"PLTE" and header[9:10] == bytes([_PALETTE]))
        has_palette |= kind == b"PLTE"
        if not is_needed or end > len(data):
            needed.append(view[kept_from:at])
            kept_from = end
        if kind == b"IEND":
            break
        if kind == b"IHDR":
            header = header or data[at + 8 : end - 4]
        elif kind == b"eXIf" and orientation == 1:
            orientation = exif_orientation(data[at + 8 : end - 4])
        elif kind == _PIXELS and end > len(data):
            needed.append(_cut_chunk(data[at + 8 :][:length]))
        elif not is_needed:
            _reject_unknown_critical(kind)
        at = end
    if not of_pixels:
        raise BrokenImageError("the PNG image has no pixels")
    if header[9:10] == bytes([_PALETTE]) and not has_palette:
        raise BrokenImageError("the PNG image lacks its palette")
    needed += [view[kept_from:at], _chunk(b"IEND", b"")]
    return header, needed, orientation


def _reject_unknown_critical(kind: bytes) -> None:
    """Of the chunks, those with a capital first letter must be understood (section 5.4)."""
    if kind[:1].isupper() and kind != b"PLTE":
        if kind == b"CgBI":
            raise UnsupportedImageError("PNG images that Xcode made for iPhones (CgBI) are not taken")
        raise BrokenImageError("the PNG image has a critical chunk that is not known")


def _cut_chunk(content: bytes) -> bytes:
    """The last pixels of a file that ends too early. If only checksums are missing, the picture is whole."""
    return _chunk(_PIXELS, content)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
