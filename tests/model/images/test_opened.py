"""What decoding needs is what it is said to need, and a lack of it is no fault of the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from benchmarks.slowest_images import smooth
from model.images.decoding import open_image
from tests.support.image_files import saved
from tests.support.processes import script_environment

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
SHORT_SIDE = 1024
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
OTHERS: list[tuple[str, str, dict[str, Any]]] = [
    ("WEBP", "RGBA", {"method": 0}),
    ("BMP", "RGB", {}),
    ("TIFF", "RGB", {"compression": "jpeg"}),
    ("TIFF", "L", {"compression": "lzma"}),
    ("TIFF", "1", {"compression": "group4"}),
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


def outcomes(data: bytes, folder: Path, *options: str) -> set[str]:
    """What comes of decoding it in processes of little memory, or by `--enough` in one of as much as it needs."""
    file = folder / "image"
    file.write_bytes(data)
    said = subprocess.run(
        [sys.executable, "-m", "tests.support.short_of_memory", *options, str(file)],
        env=script_environment(), capture_output=True, check=True, timeout=100,
    )  # fmt: skip
    return set(json.loads(said.stdout))


def short(image_format: str, mode: str, options: dict[str, Any]) -> bytes:
    if image_format == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow has no AVIF here")
    return saved(smooth(mode, SHORT_SIDE), image_format, **options)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize(("image_format", "mode", "options"), KINDS + OTHERS)
def test_a_lack_of_memory_is_no_fault_of_the_file(
    image_format: str, mode: str, options: dict[str, Any], tmp_path: Path
) -> None:
    assert outcomes(short(image_format, mode, options), tmp_path) == {"decoded", "lacked memory"}


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize(("image_format", "mode", "options"), [kind for kind in KINDS if kind[0] in {"PNG", "WEBP"}])
def test_a_broken_file_is_called_so_where_memory_suffices(
    image_format: str, mode: str, options: dict[str, Any], tmp_path: Path
) -> None:
    data = short(image_format, mode, options)
    third = len(data) // 3
    (outcome,) = outcomes(data[:third] + b"\xff" * third + data[2 * third :], tmp_path, "--enough")
    assert outcome.startswith("BrokenImageError")
