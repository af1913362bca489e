"""Damaged files: a rejection of the typed kinds or a picture, and the same in serving and in training."""

from __future__ import annotations

import io
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from model.data.samples import DataError, read_image
from service.errors import ServiceError
from service.images.pictures import decode
from tests.support.image_files import picture, segment

MOST = 100_000_000  # as in training
FILES = int(os.environ.get("RELIABILITY_FUZZED", "20000"))
KINDS: list[tuple[str, str, dict[str, Any]]] = [
    ("JPEG", "RGB", {"quality": 80}),
    ("JPEG", "RGB", {"progressive": True}),
    ("JPEG", "L", {}),
    ("JPEG", "CMYK", {}),
    ("PNG", "RGB", {}),
    ("PNG", "RGBA", {}),
    ("PNG", "P", {}),
    ("PNG", "1", {}),
    ("PNG", "I;16", {}),
    ("WEBP", "RGB", {}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("GIF", "P", {}),
    ("BMP", "RGB", {}),
    ("BMP", "P", {}),
    ("TIFF", "RGB", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "RGB", {"compression": "jpeg"}),
    ("TIFF", "CMYK", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", "1", {"compression": "group4"}),
    ("TIFF", "1", {"compression": "group3"}),
    ("TIFF", "I;16", {"compression": "packbits"}),
    ("AVIF", "RGB", {}),
]
EXTREMES = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\xff\xff", b"\x01\0\0\0")


def originals() -> list[tuple[str, bytes]]:
    """A small picture in each format and in several modes, turned and with metadata, and what Pillow does not write."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    colors = Image.fromarray(picture(40, 56))
    made = []
    for image_format, mode, options in KINDS:
        if image_format == "AVIF" and not features.check("avif"):
            continue
        image = Image.fromarray(np.asarray(colors.convert("L")).astype(np.uint16) * 257) if mode == "I;16" else colors
        buffer = io.BytesIO()
        (image if mode == "I;16" else image.convert(mode)).save(buffer, image_format, exif=exif, **options)
        made.append((image_format, buffer.getvalue()))
    jpeg = next(data for image_format, data in made if image_format == "JPEG")
    made.append(("JPEG", jpeg[:2] + segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0") + jpeg[2:-2]))
    return made


def damaged(random_: random.Random, data: bytes) -> bytes:
    """Bytes changed, cut, doubled, moved or set to extremes, mostly in the head."""
    body = bytearray(data)
    for _ in range(random_.choice((1, 1, 2, 4, 12))):
        at = random_.randrange(min(len(body), random_.choice((16, 64, 512, len(body))))) if body else 0
        length = random_.randint(1, 24)
        match random_.randrange(6):
            case 0:
                body[at : at + 1] = bytes([random_.choice((0, 1, 0x7F, 0x80, 0xFF, random_.randrange(256)))])
            case 1:
                body[at : at + 4] = random_.choice(EXTREMES)
            case 2:
                del body[at : at + length]
            case 3:
                body[at:at] = body[at : at + length] * random_.randint(1, 9)
            case 4:
                body[at : at + length] = random_.randbytes(length)
            case 5:
                del body[random_.randrange(len(body) + 1) :]
    return bytes(body)


def fuzz(files: int, seed: int, folder: Path) -> Counter[str]:
    """How many were taken and rejected. Fails where serving and training disagree, or raise anything else."""
    random_, kinds, path = random.Random(seed), originals(), folder / "image"
    outcomes: Counter[str] = Counter()
    for number in range(files):
        image_format, data = kinds[number % len(kinds)]
        data = damaged(random_, data)
        path.write_bytes(data)
        served = learned = None
        try:
            served = decode(data, max_pixels=MOST).pixels
            outcomes[f"{image_format} taken"] += 1
        except ServiceError as error:
            assert 400 <= error.status < 500, error
            outcomes[f"{image_format} {error.status}"] += 1
        try:
            learned = read_image(path)
        except DataError:
            assert served is None
        else:
            assert served is not None
            assert served.equal(learned)
    return outcomes


def test_damaged_files_are_rejected_or_the_same_picture(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outcomes = fuzz(len(KINDS) * 30, seed=1, folder=tmp_path)
    assert sum(count for outcome, count in outcomes.items() if "taken" in outcome) > 50
    assert capfd.readouterr().err == ""


@pytest.mark.reliability
def test_thousands_of_damaged_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outcomes = fuzz(FILES, seed=2, folder=tmp_path)
    assert capfd.readouterr().err == ""
    for outcome, count in sorted(outcomes.items()):
        print(f"RECORD {outcome}: {count:,}")
