"""What decoding needs is what it is said to need."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from model.images.decoding import open_image
from tests.support.image_files import saved

SIDE = 2048
SLACK_BYTES = 6 << 20
# Decodes the file of standard input, once small things are loaded; tells by how much its peak has grown.
SCRIPT = """
import re, sys
from pathlib import Path
from model.images.decoding import decode
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
data, little = sys.stdin.buffer.read(), bytes.fromhex(sys.argv[1])
decode(little, max_pixels=1 << 26)
Path("/proc/self/clear_refs").write_text("5")
before = peak()
decode(data, max_pixels=1 << 26)
print(peak() - before)
"""
KINDS: list[tuple[str, str, dict[str, Any]]] = [
    ("JPEG", "RGB", {}),
    ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
    ("JPEG", "CMYK", {"progressive": True}),
    ("PNG", "RGBA", {"compress_level": 1}),
    ("WEBP", "RGBA", {"lossless": True, "method": 0, "quality": 0}),
    ("WEBP", "RGB", {"method": 0}),
    ("AVIF", "RGBA", {"speed": 10, "subsampling": "4:4:4"}),
    ("GIF", "P", {}),
    ("TIFF", "CMYK", {"compression": "tiff_lzw"}),
]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("image_format", "mode", "options"), KINDS)
def test_no_decoder_needs_more_than_is_reserved(image_format: str, mode: str, options: dict[str, Any]) -> None:
    if image_format == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow has no AVIF here")
    exif = Image.Exif()
    exif[0x0112] = 6 if image_format == "JPEG" else 1
    grains = np.random.default_rng(0).integers(0, 4, (SIDE, SIDE, 3), np.uint8)
    data, little = (
        saved(Image.fromarray(grains[:side, :side]).convert(mode), image_format, exif=exif, **options)
        for side in (SIDE, 32)
    )
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, little.hex()], input=data, capture_output=True, check=True, timeout=100
    )
    image = open_image(data, max_pixels=1 << 26)
    assert int(ran.stdout) <= image.working_bytes + 3 * SIDE * SIDE + SLACK_BYTES
