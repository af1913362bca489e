"""Files that people take for images that are decoded here, by how they begin."""

from __future__ import annotations

_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset({b"mif1", b"msf1", b"mif2", b"miaf"})
_CAMERA_RAW, _VIDEO = "a camera raw file", "a video"
# (offset, bytes there, what to call the file)
_SIGNATURES = (
    (0, b"%PDF", "a PDF"),
    (0, b"%!PS", "a PostScript file"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript file"),
    (0, b"\x00\x00\x01\xba", _VIDEO),
    (4, b"moov", _VIDEO),
    (4, b"mdat", _VIDEO),
    (4, b"wide", _VIDEO),
    (0, b"\x00\x00\x01\x00", "an ICO file"),
    (0, b"\x00\x00\x02\x00", "a CUR file"),
    (0, b"icns", "an ICNS file"),
    (0, b"DDS ", "a DDS file"),
    (0, b"\xabKTX ", "a KTX file"),
    *((0, b"P%d\n" % number, "a PNM file") for number in range(1, 8)),
    (0, b"PF\n", "a PFM file"),
    (0, b"Pf\n", "a PFM file"),
    (0, b"#define", "an XBM file"),
    (0, b"/* XPM", "an XPM file"),
    *((0, b"\n%c\1" % version, "a PCX file") for version in (0, 2, 3, 4, 5)),
    (0, b"\x01\xda", "an SGI file"),
    (0, b"\x59\xa6\x6a\x95", "a Sun raster file"),
    (0, b"SIMPLE  =", "a FITS file"),
    (0, b"\xd7\xcd\xc6\x9a", "a WMF drawing"),
    (40, b" EMF", "an EMF drawing"),
    (0, b"AT&TFORM", "a DjVu file"),
    (0, b"BPG\xfb", "a BPG file"),
    (0, b"FLIF", "a FLIF file"),
    (0, b"\x8bJNG", "a JNG file"),
    (0, b"NRRD", "an NRRD file"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x93NUMPY", "a file of NumPy"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"\xff\x0a", "a JPEG XL file"),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL file"),
    (0, b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 file"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 file"),
    (0, b"II\xbc\x01", "a JPEG XR file"),
    (0, b"v/1\x01", "an OpenEXR file"),
    (0, b"#?RADIANCE", "a Radiance HDR file"),
    (0, b"#?RGBE", "a Radiance HDR file"),
    (0, b"qoif", "a QOI file"),
    (0, b"\x8aMNG", "an MNG file"),
    (0, b"gimp xcf", "a GIMP file"),
    (128, b"DICM", "a DICOM file"),
    (0, b"FUJIFILMCCD-RAW", _CAMERA_RAW),
    (0, b"IIRO", _CAMERA_RAW),
    (0, b"IIRS", _CAMERA_RAW),
    (0, b"MMOR", _CAMERA_RAW),
    (0, b"IIU\x00", _CAMERA_RAW),
    (0, b"\x00MRM", _CAMERA_RAW),
    (6, b"HEAPCCDR", _CAMERA_RAW),
    (0, b"FOVb", _CAMERA_RAW),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"PK\x05\x06", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\x00", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x1aE\xdf\xa3", _VIDEO),
    (8, b"AVI ", _VIDEO),
    (0, b"FLV\x01", _VIDEO),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", _VIDEO),
    (0, b"OggS", "a video or sound"),
    (8, b"WAVE", "a sound"),
)
_MARKUP = (
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML or SVG file"),
    (b"<!doctype", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<!--", "an HTML page or SVG drawing"),
    (b"data:", "a data: URL, as text"),
    (b"/9j/", "base64 of an image, as text"),
    (b"ivborw0kggo", "base64 of an image, as text"),
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
    return "a HEIF file" if found[0] in _HEIF_BRANDS else _VIDEO
