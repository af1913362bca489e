"""TIFF 6.0 and BigTIFF: the layout is read here, and Pillow gets a file with nothing else in it.

A TIFF may have hundreds of tags and pages, and layouts that Pillow opens but orders, scales or inverts wrongly. So the
picture's directory is read here, and only layouts that are known to come out right are taken. What Pillow decodes is a
file made of this picture's strips or tiles and of the few tags that describe them. Samples that lie in planes are
decoded plane by plane, as grey images.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from model.images.errors import BrokenImageError, ImageTooLargeError, UnsupportedImageError
from model.images.tags import Directory

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
RAW, JPEG = 1, 7

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES, _PLANAR = 273, 277, 278, 279, 284
_T4_OPTIONS, _T6_OPTIONS, _PREDICTOR, _COLOR_MAP = 292, 293, 317, 320
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_INK_SET, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _JPEG_TABLES, _SUBSAMPLING = 332, 338, 339, 347, 530

_FAX = frozenset({2, 3, 4})
_WITH_PREDICTOR = frozenset({5, 8, 32946, 34925, 50000})  # LZW, deflate (twice), LZMA, Zstandard
_PACK_BITS = 32773
_MAYBE_PREDICTED = _WITH_PREDICTOR | {_PACK_BITS}
_COMPRESSIONS = _FAX | _WITH_PREDICTOR | {RAW, JPEG, _PACK_BITS}
_INKS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
_NAMES = {WHITE_IS_ZERO: "grey", BLACK_IS_ZERO: "grey", RGB: "RGB", PALETTE: "palette", CMYK: "CMYK", YCBCR: "YCbCr"}
_PREMULTIPLIED = 1
_UNSIGNED = frozenset({1, 4})  # 4: not defined

_MOST_PIECES = 1 << 16  # tiles of 32 x 32 over 8192 x 8192 pixels
_MOST_TILE_PIXELS = 1 << 22
# Measured by benchmarks/slowest_images.py, in pixels of a plain JPEG: 67 million of them take about a second.
_TIME_OF_BYTE, _TIME_OF_PIXEL, _TIME_OF_PLANES, _TIME_OF_PIECE = 0.3, 0.2, 1.0, 800
_TIMES_OF_BYTE = {34925: 0.9, 2: 1.5, 3: 1.5, 4: 1.5, JPEG: 0.4}  # LZMA, fax
_BYTES_OF_PLANES = 22  # with the planes stacked, merged and converted by Pillow
_MOST_SAMPLES = 8
_REVERSED_BITS = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a picture's samples lie in the file.

    Attributes:
        bits: of each sample; 0 if they differ.
        has_premultiplied_alpha: the fourth sample is one that the colours have been multiplied by.
        is_planar: each plane has strips or tiles of its own.
        tile_wh: None where there are strips.
    """

    directory: Directory
    width: int
    height: int
    bits: int
    samples: int
    has_premultiplied_alpha: bool
    photometric: int
    compression: int
    is_planar: bool
    has_reversed_bits: bool
    tile_wh: tuple[int, int] | None
    rows_per_strip: int

    @property
    def sample_bytes(self) -> int:
        """Of all samples, when they are unpacked."""
        return self.width * self.height * self.samples * max(self.bits, 8) // 8

    @property
    def work(self) -> int:
        """See `OpenedImage.work`. An image without pixels, which is rejected later, is none."""
        if self.width < 1 or self.height < 1:
            return 0
        time_of_byte = _TIMES_OF_BYTE.get(self.compression, _TIME_OF_BYTE)
        pieces = self.pieces * (self.samples if self.is_planar else 1)
        pixels = self.width * self.height * (_TIME_OF_PLANES if self.is_planar else _TIME_OF_PIXEL)
        return round(time_of_byte * self.sample_bytes + pixels) + pieces * _TIME_OF_PIECE

    @property
    def working_bytes(self) -> int:
        """Of planes and tiles, see `OpenedImage.working_bytes`."""
        tile = 0 if self.tile_wh is None else self.tile_wh[0] * self.tile_wh[1]
        return self.width * self.height * (_BYTES_OF_PLANES if self.is_planar else 4) + 8 * tile

    @property
    def pieces(self) -> int:
        """Strips or tiles, of one plane if there are planes."""
        if self.tile_wh is None:
            return -(-self.height // self.rows_per_strip)
        return -(-self.width // self.tile_wh[0]) * -(-self.height // self.tile_wh[1])

    def raw_bytes(self, piece: int) -> int:
        """Of a strip or tile before it was compressed."""
        rows = min(self.rows_per_strip, self.height - piece * self.rows_per_strip)
        width, rows = self.tile_wh or (self.width, rows)
        return (width * self.bits * (1 if self.is_planar else self.samples) + 7) // 8 * rows


def read_layout(directory: Directory) -> Layout:
    """What the tags say, if it is a layout that comes out right.

    Raises:
        BrokenImageError, UnsupportedImageError, ImageTooLargeError
    """
    compression = directory.integer(_COMPRESSION, RAW)
    bits = directory.integers(_BITS, most=64) or (1,)
    samples = directory.integer(_SAMPLES, len(bits))
    extra = directory.integers(_EXTRA_SAMPLES, most=64) or ()
    # Where the tag is missing, as libtiff guesses.
    guess = WHITE_IS_ZERO if compression in _FAX else RGB if samples - len(extra) == 3 else BLACK_IS_ZERO
    photometric = directory.integer(_PHOTOMETRIC, guess)
    width, height = directory.integer(_WIDTH, 0), directory.integer(_HEIGHT, 0)
    tile_wh = None
    if _TILE_OFFSETS in directory.entries:
        tile_wh = directory.integer(_TILE_WIDTH, 0), directory.integer(_TILE_HEIGHT, 0)
    layout = Layout(
        directory=directory,
        width=width,
        height=height,
        bits=bits[0] if len(set(bits)) == 1 else 0,
        samples=samples,
        has_premultiplied_alpha=photometric == RGB and samples > 3 and extra[:1] == (_PREMULTIPLIED,),
        photometric=photometric,
        compression=compression,
        is_planar=directory.integer(_PLANAR, 1) == 2 and samples > 1,
        has_reversed_bits=directory.integer(_FILL_ORDER, 1) == 2,
        tile_wh=tile_wh,
        rows_per_strip=min(directory.integer(_ROWS_PER_STRIP, height), height),
    )
    _check_kind(layout)
    _check_pieces(layout)
    return layout


def _check_kind(layout: Layout) -> None:
    tags = layout.directory
    bits, compression, samples = layout.bits, layout.compression, layout.samples
    inks = _INKS.get(layout.photometric, 0)
    formats = tags.integers(_SAMPLE_FORMAT, most=64) or (1,)
    is_taken = (
        0 < inks <= samples <= _MOST_SAMPLES
        and compression in _COMPRESSIONS
        and set(formats) <= _UNSIGNED
        and bits in _bits_taken(layout)
        and (compression != JPEG or bits == 8)
        and (compression not in _FAX or (bits == 1 and layout.photometric in {WHITE_IS_ZERO, BLACK_IS_ZERO}))
        and (layout.photometric != YCBCR or (compression == JPEG and not layout.is_planar and samples == inks))
        and (layout.photometric != CMYK or tags.integer(_INK_SET, 1) == 1)
        and (compression not in _MAYBE_PREDICTED or tags.integer(_PREDICTOR, 1) in _predictors_taken(layout))
        and not (layout.has_reversed_bits and bits > 8 and compression != RAW)
    )
    if not is_taken:
        name = _NAMES.get(layout.photometric, f"photometric interpretation {layout.photometric}")
        kind = {2: " signed", 3: " float"}.get(formats[0], "")
        raise UnsupportedImageError(
            f"TIFF images of {samples}{kind} samples of {bits or 'differing'} bits, {name}, compression {compression}, "
            "are not taken"
        )


def _bits_taken(layout: Layout) -> set[int]:
    if layout.samples > 1:
        if layout.photometric == PALETTE:
            return set()
        has_colors = layout.photometric in {RGB, CMYK, YCBCR}
        most = {8: 6, 16: 4} if has_colors else {8: 2, 16: 1}  # of samples side by side, in Pillow
        return {bits for bits in most if layout.is_planar or layout.samples <= most[bits]}
    if layout.photometric == PALETTE:
        return {1, 2, 4, 8}
    return {1, 2, 4, 8, 12, 16} if layout.compression == RAW else {1, 2, 4, 8, 16}


def _predictors_taken(layout: Layout) -> set[int]:
    """Tifffile writes differences of PackBits, too, which libtiff takes for samples."""
    return {1, 2} if layout.compression in _WITH_PREDICTOR and layout.bits in {8, 16} else {1}


def _check_pieces(layout: Layout) -> None:
    """Libtiff gets memory for a whole tile, whatever the picture's size, and takes time for each."""
    if layout.tile_wh and not (layout.tile_wh[0] and layout.tile_wh[1]):
        raise BrokenImageError("the TIFF image has tiles without a size")
    if layout.width < 1 or layout.height < 1:
        return  # rejected as any image without pixels is
    if layout.rows_per_strip < 1:
        raise BrokenImageError("the TIFF image has strips without rows")
    if layout.tile_wh and layout.tile_wh[0] * layout.tile_wh[1] > max(_MOST_TILE_PIXELS, layout.width * layout.height):
        raise ImageTooLargeError(f"the TIFF image has tiles of {layout.tile_wh[0]} x {layout.tile_wh[1]} pixels")
    pieces = layout.pieces * (layout.samples if layout.is_planar else 1)
    if pieces > _MOST_PIECES:
        raise ImageTooLargeError(f"the TIFF image has {pieces:,} strips or tiles; at most {_MOST_PIECES:,} are taken")


def plain_file(layout: Layout, plane: int | None) -> bytes:
    """The picture, or one of its planes as a grey image, as a TIFF file of its own.

    Raises:
        BrokenImageError: strips or tiles are missing.
    """
    pieces = _pieces(layout, plane or 0)
    tags = layout.directory
    # Of the sample sizes that are taken, the order of bytes matters to this one alone.
    byte_order = tags.byte_order if layout.bits == 16 else "<"
    samples = layout.samples if plane is None else 1
    short: dict[int, tuple[int, ...]] = {
        _BITS: (layout.bits,) * samples,
        _COMPRESSION: (layout.compression,),
        _PHOTOMETRIC: (layout.photometric if plane is None else BLACK_IS_ZERO,),
        _FILL_ORDER: (2 if layout.has_reversed_bits and layout.compression != RAW else 1,),
        _SAMPLES: (samples,),
    }
    long: dict[int, tuple[int, ...]] = {_WIDTH: (layout.width,), _HEIGHT: (layout.height,)}
    extra = samples - _INKS[layout.photometric]
    if plane is None and extra:  # of no meaning, so that Pillow drops them
        short[_EXTRA_SAMPLES] = (int(layout.has_premultiplied_alpha), *[0] * (extra - 1))
    if layout.compression in _WITH_PREDICTOR:
        short[_PREDICTOR] = (tags.integer(_PREDICTOR, 1),)
    for tag in (_T4_OPTIONS, _T6_OPTIONS) if layout.compression in _FAX else ():
        long[tag] = (tags.integer(tag, 0),)
    if layout.photometric == PALETTE:
        short[_COLOR_MAP] = _color_map(layout)
    if layout.photometric == YCBCR:
        short[_SUBSAMPLING] = tags.integers(_SUBSAMPLING, most=2) or (2, 2)
    if layout.tile_wh is not None:
        offsets_tag, bytes_tag = _TILE_OFFSETS, _TILE_BYTES
        long |= {_TILE_WIDTH: (layout.tile_wh[0],), _TILE_HEIGHT: (layout.tile_wh[1],)}
    else:
        offsets_tag, bytes_tag = _STRIP_OFFSETS, _STRIP_BYTES
        if layout.compression == RAW:  # Pillow takes time for each strip
            pieces = [b"".join(pieces)]
        long[_ROWS_PER_STRIP] = (-(-layout.height // len(pieces)) if len(pieces) == 1 else layout.rows_per_strip,)
    offsets, at = [], 8
    for piece in pieces:
        offsets.append(at)
        at += len(piece)
    long |= {offsets_tag: tuple(offsets), bytes_tag: tuple(len(piece) for piece in pieces)}
    tables = tags.content(_JPEG_TABLES, most=1 << 16) if layout.compression == JPEG else b""
    return _file(byte_order, pieces, short, long, {_JPEG_TABLES: tables} if tables else {})


def _color_map(layout: Layout) -> tuple[int, ...]:
    colors = layout.directory.integers(_COLOR_MAP, most=3 << 16)
    if colors is None or len(colors) < 3 << layout.bits:
        raise BrokenImageError("the TIFF image lacks its palette")
    colors = colors[: 3 << layout.bits]
    return colors if max(colors) > 255 else tuple(257 * value for value in colors)  # old writers' have 8 bits


def _pieces(layout: Layout, plane: int) -> list[bytes]:
    """The bytes of each strip or tile of a plane."""
    tags, number = layout.directory, layout.pieces
    tiled = layout.tile_wh is not None
    offsets = tags.integers(_TILE_OFFSETS if tiled else _STRIP_OFFSETS, most=len(tags.data)) or ()
    counts = tags.integers(_TILE_BYTES if tiled else _STRIP_BYTES, most=len(tags.data)) or ()
    offsets, counts = offsets[plane * number :][:number], counts[plane * number :][:number]
    if layout.compression == RAW:
        counts = tuple(layout.raw_bytes(piece) for piece in range(number))
    elif number == 1 and counts in {(), (0,)}:  # old writers leave it out
        counts = tuple(len(tags.data) - offset for offset in offsets)
    if len(offsets) < number or len(counts) < number or 0 in offsets:
        raise BrokenImageError("the TIFF image lacks strips or tiles")
    if any(offset + count > len(tags.data) for offset, count in zip(offsets, counts, strict=True)):
        raise BrokenImageError("the TIFF image is truncated: its pixels reach out of the file")
    if sum(counts) > len(tags.data):
        raise BrokenImageError("the TIFF image has strips or tiles that overlap")
    pieces = [tags.data[offset : offset + count] for offset, count in zip(offsets, counts, strict=True)]
    if layout.has_reversed_bits and layout.compression == RAW:
        pieces = [piece.translate(_REVERSED_BITS) for piece in pieces]
    return pieces


def _file(
    byte_order: str,
    pieces: list[bytes],
    short: dict[int, tuple[int, ...]],
    long: dict[int, tuple[int, ...]],
    undefined: dict[int, bytes],
) -> bytes:
    """A TIFF file: head, strips or tiles, values, directory."""
    packed = [
        (tag, 3, len(values), struct.pack(f"{byte_order}{len(values)}H", *values)) for tag, values in short.items()
    ]
    packed += [
        (tag, 4, len(values), struct.pack(f"{byte_order}{len(values)}I", *values)) for tag, values in long.items()
    ]
    packed += [(tag, 7, len(content), content) for tag, content in undefined.items()]
    parts = list(pieces)
    at = 8 + sum(map(len, pieces))
    entries = b""
    for tag, kind, count, values in sorted(packed):
        inline = values.ljust(4, b"\0")
        if len(values) > 4:
            inline = struct.pack(byte_order + "I", at)
            parts.append(values)
            at += len(values)
        entries += struct.pack(byte_order + "HHI", tag, kind, count) + inline
    magic = b"II*\0" if byte_order == "<" else b"MM\0*"
    directory = struct.pack(byte_order + "H", len(packed)) + entries + bytes(4)
    return b"".join([magic, struct.pack(byte_order + "I", at), *parts, directory])
