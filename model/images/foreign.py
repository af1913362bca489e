"""Files that people take for images that are decoded here, by how they begin."""

from __future__ import annotations

_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset({b"mif1", b"msf1", b"mif2", b"miaf"})
_CAMERA_RAW = "a camera raw file"
# (offset, bytes there, what to call the file)
_SIGNATURES = (
    (0, b"%PDF", "a PDF"),
    (0, b"\x00\x00\x01\x00", "an ICO file"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"\xff\x0a", "a JPEG XL file"),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL file"),
    (0, b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 file"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 file"),
    (0, b"II\xbc\x01", "a JPEG XR file"),
    (0, b"v/1\x01", "an OpenEXR file"),
    (0, b"#?RADIANCE", "a Radiance HDR file"),
    (0, b"qoif", "a QOI file"),
    (0, b"\x8aMNG", "an MNG file"),
    (0, b"gimp xcf", "a GIMP file"),
    (128, b"DICM", "a DICOM file"),
    (0, b"FUJIFILMCCD-RAW", _CAMERA_RAW),
    (0, b"IIRO", _CAMERA_RAW),
    (0, b"IIRS", _CAMERA_RAW),
    (0, b"MMOR", _CAMERA_RAW),
    (0, b"IIU\x00", _CAMERA_RAW),
    (0, b"FOVb", _CAMERA_RAW),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\x1aE\xdf\xa3", "a video"),
)
_MARKUP = (
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML or SVG file"),
    (b"<!doctype", "an HTML page"),
    (b"<html", "an HTML page"),
)


def foreign_name(data: bytes) -> str | None:
    """What to call a file of another kind. None if it is not known."""
    for offset, magic, name in _SIGNATURES:
        if data[offset : offset + len(magic)] == magic:
            return name
    text = data[:200].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for magic, name in _MARKUP:
        if text.startswith(magic):
            return name
    return _name_of_brands(brands(data))


def brands(data: bytes) -> list[bytes]:
    """Of a file of boxes (ISO/IEC 14496-12): its major brand, then those that it says it is compatible with."""
    if data[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(data[:4]), len(data), 256)
    return [data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))]


def is_avif(data: bytes) -> bool:
    """Whether the brands promise AV1, and no other codec goes before it."""
    found = brands(data)
    return bool(found) and (found[0] in _AVIF_BRANDS or (found[0] in _HEIF_BRANDS and not _HEIC_BRANDS & set(found)))


def _name_of_brands(found: list[bytes]) -> str | None:
    if not found:
        return None
    if found[0] == b"crx ":
        return _CAMERA_RAW
    if _HEIC_BRANDS & set(found):
        return "a HEIC file"
    return "a HEIF file" if found[0] in _HEIF_BRANDS else "a video"
