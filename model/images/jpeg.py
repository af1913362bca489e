"""JPEG (ITU-T T.81): the segments are checked here, libjpeg-turbo decodes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import simplejpeg

from model.images.errors import BrokenImageError, ImageTooLargeError, UnsupportedImageError
from model.images.opened import OpenedImage, Pixels, pillow_bytes, pillow_image, write_rgb
from model.images.tags import exif_orientation

MAGIC = b"\xff\xd8"
_END_OF_IMAGE = b"\xff\xd9"
_START, _SCAN, _END, _APP0, _EXIF, _ADOBE, _COMMENT = 0xD8, 0xDA, 0xD9, 0xE0, 0xE1, 0xEE, 0xFE
_METADATA = frozenset({*range(_APP0, 0xF0), _COMMENT})
_WITHOUT_LENGTH = frozenset({0x01, _START, _END})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_LS = 0xF7  # the frame of another standard, ITU-T T.87
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
# Not 0 and not 0xD0 to 0xD7, which pixels may have after 0xFF, and not 0xFF, which fills.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)

# A colour profile and a depth map in pieces take 500. At 10 microseconds each, this is a tenth of a second.
_MOST_PARTS = 10_000
# Each scan goes through all pixels. Encoders write 10 scans, 18 for CMYK: that many for 45 million pixels at least.
_USUAL_SCANS, _MOST_SCANS = 12, 100
# Of a pixel, where that of one scan is 1: each scan goes through all coefficients, and where something is wrong with a
# file Pillow does it once more. CMYK is decoded twice where the end is missing. Bytes cost if there are several scans.
_TIME_OF_SCAN, _TIME_OF_BYTE = 0.17, 1.5
_TIME_OF_CMYK, _TIME_OF_CMYK_TWICE = 1.6, 2.6
_MOST_SCANNED_PIXELS = _USUAL_SCANS << 26


@dataclass(slots=True)
class _Segments:
    """What lies before the end of the image."""

    frame: bytes = b""  # the content of the first SOF segment
    is_progressive: bool = False
    orientation: int = 0  # until there was EXIF
    kept: list[tuple[int, int]] = field(default_factory=list)  # before the first scan, without metadata
    first_scan: int = 0
    end: int = 0  # where the end marker, another image or nothing follows: phones append whole videos
    scans: list[bytes] = field(default_factory=list)  # the content of each SOS segment
    has_end: bool = False
    is_cut: bool = False  # in a segment


def open_jpeg(data: bytes) -> OpenedImage:
    """Read the segments.

    Raises:
        BrokenImageError, UnsupportedImageError, ImageTooLargeError
    """
    segments = _walk(data)
    if len(segments.frame) < 6 or not segments.scans:
        raise BrokenImageError("the JPEG image is broken: it has no frame, or no scan")
    precision, components = segments.frame[0], segments.frame[5]
    height, width = int.from_bytes(segments.frame[1:3]), int.from_bytes(segments.frame[3:5])
    if precision != 8 or components not in {1, 3, 4}:
        raise UnsupportedImageError(f"JPEG images of {components} components of {precision} bits are not taken")
    scans = len(segments.scans)
    if scans > _MOST_SCANS or (scans > _USUAL_SCANS and scans * width * height > _MOST_SCANNED_PIXELS):
        raise ImageTooLargeError(f"the JPEG image has {scans} scans over {width} x {height} pixels, which is too many")
    pixels = width * height
    scanned = segments.end - segments.first_scan
    coefficients = 2 * components if segments.is_progressive or scans > 1 else 0  # bytes of a pixel
    return OpenedImage(
        format="JPEG",
        width=width,
        height=height,
        orientation=segments.orientation or 1,
        sample_bytes=pixels * components,
        work=round(pixels * _time_of_pixel(segments) + (_TIME_OF_BYTE * scanned if coefficients else 0)),
        working_bytes=pillow_bytes(pixels, 1 + components + coefficients, len(data)),
        write=lambda out: _write(data, segments, out),
    )


def _time_of_pixel(segments: _Segments) -> float:
    of_cmyk = _TIME_OF_CMYK if segments.has_end else _TIME_OF_CMYK_TWICE
    return max(of_cmyk if segments.frame[5] == 4 else 1.0, _TIME_OF_SCAN * len(segments.scans))


def _walk(data: bytes) -> _Segments:
    found, parts, at = _Segments(), 0, len(MAGIC)
    while match := _MARKER.search(data, at):
        start, kind = match.start(), data[match.end() - 1]
        if kind == _END and found.scans:
            found.has_end, found.end = True, start
            return found
        if kind == _START and found.scans:
            found.end = start
            return found
        parts += 1
        if parts > _MOST_PARTS:
            raise ImageTooLargeError(f"the JPEG image has more than {_MOST_PARTS:,} parts")
        at = match.end()
        if kind not in _WITHOUT_LENGTH:
            at += max(int.from_bytes(data[at : at + 2]), 2)
        _take_segment(found, kind, start, data[start + 4 : at], at)
    found.is_cut, found.end = at > len(data), len(data)
    return found


def _take_segment(found: _Segments, kind: int, start: int, content: bytes, end: int) -> None:
    if kind == _SCAN:
        found.first_scan = found.first_scan or start
        found.scans.append(content)
    elif kind == _JPEG_LS:
        raise UnsupportedImageError("JPEG-LS images are not taken")
    elif found.scans:
        pass
    elif kind == _EXIF and content.startswith(b"Exif\0\0") and not found.orientation:
        found.orientation = exif_orientation(content)
    elif kind not in _METADATA or _tells_colours(kind, content):
        found.kept.append((start, end))
        if kind in _FRAMES and not found.frame:
            found.frame, found.is_progressive = content, kind in _PROGRESSIVE


def _tells_colours(kind: int, content: bytes) -> bool:
    """Of the metadata, libjpeg reads these two, and no shorter ones."""
    is_jfif = kind == _APP0 and content.startswith(b"JFIF\0") and len(content) >= 14
    return is_jfif or (kind == _ADOBE and content.startswith(b"Adobe") and len(content) >= 12)


def _write(data: bytes, segments: _Segments, out: Pixels) -> None:
    if segments.has_end:
        if _write_intact(data, segments, out):
            return
    elif _has_all_scans(segments):
        # Cameras that cut their files out of a stream leave the end marker out. If it is all that is missing, strict
        # decoding finds nothing else wrong.
        data = data[: segments.end].rstrip(b"\xff")
        if _write_intact(data + _END_OF_IMAGE, segments, out):
            return
        if segments.is_progressive:  # Pillow does not take it without the marker, whatever follows the last scan
            if _write_intact(_without_padding(data) + _END_OF_IMAGE, segments, out):
                return
            raise BrokenImageError("the JPEG image is broken or truncated")
    write_rgb(pillow_image(_without_metadata(data, segments), "JPEG"), out)


def _without_padding(data: bytes) -> bytes:
    """The data up to the zeros and line ends behind the last scan. A zero behind 0xFF belongs to the scan."""
    bare = data.rstrip(b"\0\r\n\xff")
    return data[: len(bare) + 2] if data[len(bare) :].startswith(b"\xff\0") else bare


def _write_intact(data: bytes, segments: _Segments, out: Pixels) -> bool:
    """Decode in three quarters of the time that Pillow takes for the same pixels. False where Pillow has to judge."""
    components = segments.frame[5]
    try:
        if components != 4 and out.flags.c_contiguous:  # raises ValueError before it decodes, where `out` is too small
            return bool(simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out).shape == out.shape)
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        if (height, width) != out.shape[:2]:  # two headers, of which one was checked
            return False
        if components == 4:  # Pillow knows what Adobe's CMYK is
            if segments.has_end:
                return False
            simplejpeg.decode_jpeg(data, colorspace="CMYK")
            write_rgb(pillow_image(_without_metadata(data, segments), "JPEG"), out)
        else:
            np.copyto(out, simplejpeg.decode_jpeg(data, colorspace="RGB"))
    except ValueError:
        return False
    return True


def _without_metadata(data: bytes, segments: _Segments) -> bytes:
    """The same picture for Pillow, which reads metadata, bytes that fill, and rubbish between segments in Python."""
    return MAGIC + b"".join(data[start:end] for start, end in segments.kept) + data[segments.first_scan :]


def _has_all_scans(segments: _Segments) -> bool:
    """Whether each component's coefficients are there to their last bit (T.81, sections B.2.3 and G.1)."""
    if segments.is_cut:
        return False
    missing: set[tuple[int, int]] = set()
    for at in range(6, len(segments.frame) - 2, 3):
        component = segments.frame[at]
        missing |= {(component, coefficient) for coefficient in range(64 if segments.is_progressive else 1)}
    for scan in segments.scans:
        count = scan[0] if scan else 0
        if len(scan) < 4 + 2 * count:
            return False
        first, last, approximation = scan[1 + 2 * count : 4 + 2 * count]
        if segments.is_progressive and approximation & 0xF:
            continue
        coefficients = range(first, last + 1) if segments.is_progressive else range(1)
        missing -= {(component, c) for component in scan[1 : 1 + 2 * count : 2] for c in coefficients}
    return not missing
