"""The slowest file of each format that is still taken: bytes, pixels, seconds of one core, and peak memory.

    python benchmarks/slowest_images.py [PATTERN]

Each file is decoded `ROUNDS` times, each time in a process of its own. The seconds are the least, as other work on the
machine can double them. Its memory is what decoding adds to that of the process, and what the service reserves for it.
"""

from __future__ import annotations

import io
import multiprocessing
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.images.decoding import check_work, open_image, read_pixels
from model.images.errors import ImageError

# Where each pass of an interlaced PNG begins, and its steps: x, y, dx, dy.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
ROUNDS = 5
MOST = 8192 * 8192  # the default of `max_image_pixels`


def saved(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noise(side: int) -> Image.Image:
    """Of a side that fits: what compresses worst."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))


def smooth(mode: str = "RGB", side: int = 8192) -> Image.Image:
    """What compresses well, and has something in each block all the same."""
    x = np.arange(side, dtype=np.uint32)
    plane = ((x[:, None] * 3 + x * 5) >> 3).astype(np.uint8)
    return Image.fromarray(plane).convert(mode)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *, bits: int = 8, interlaced: bool = False) -> bytes:
    """RGBA, each row filtered as Paeth did: what unpacks slowest."""
    packer, parts = zlib.compressobj(9), []
    if interlaced:
        sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in ADAM7]
    else:
        sizes = [(width, height)]
    for columns, rows in sizes:
        row = b"\4" + b"\1" * (columns * 4 * bits // 8)
        parts += [packer.compress(row) for _ in range(rows)]
    header = struct.pack(">IIBBBBB", width, height, bits, 6, 0, 0, int(interlaced))
    body = chunk(b"IDAT", b"".join(parts) + packer.flush())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def many_scans(image: Image.Image, scans: int) -> bytes:
    """A progressive JPEG, whose last scan is repeated."""
    whole = saved(image, "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * (scans + 1 - whole.count(b"\xff\xda")) + b"\xff\xd9"


def tiff(width: int, height: int, strip: bytes) -> bytes:
    """Grey, deflated, in strips of a row that are all the same."""
    values, entries = strip * height, b""
    offsets = [8 + len(strip) * row for row in range(height)]
    tags = {256: [width], 257: [height], 258: [8], 259: [8], 262: [1], 273: offsets, 277: [1], 278: [1]}
    tags[279] = [len(strip)] * height
    for tag, numbers in tags.items():
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        if len(packed) > 4:
            values, packed = values + packed, struct.pack("<I", 8 + len(values))
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + packed
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(values)) + values + directory


def run_length_encoded(encoded: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, 2000, 1250, 1, 8, 1, len(encoded), 0, 0, 256, 256)
    start = 54 + 1024
    return b"BM" + struct.pack("<IHHI", start + len(encoded), 0, 0, start) + head + bytes(range(256)) * 4 + encoded


def gif(blocks: bytes) -> bytes:
    whole = saved(smooth("L", 64), "GIF")
    at = 13 + (3 << (whole[10] & 7) + 1)
    return whole[:at] + blocks + whole[at:]


FILES: dict[str, Callable[[], bytes]] = {
    "JPEG, 67 million pixels": lambda: saved(smooth(), "JPEG", quality=90),
    "JPEG, progressive, 10 scans": lambda: saved(smooth(side=6150), "JPEG", progressive=True),
    "JPEG, progressive, 12 scans": lambda: many_scans(smooth(side=5560), 12),
    "JPEG, progressive, 100 scans": lambda: many_scans(smooth(side=1860), 100),
    "JPEG, progressive, 4:4:4": lambda: saved(smooth(side=6130), "JPEG", progressive=True, subsampling=0),
    "JPEG, progressive, noise": lambda: saved(noise(4850), "JPEG", quality=50, progressive=True, subsampling=0),
    "JPEG, CMYK": lambda: saved(smooth("CMYK", 6450), "JPEG"),
    "JPEG, CMYK, without an end": lambda: saved(smooth("CMYK", 5060), "JPEG")[:-2],
    "JPEG, noise of 32 MB": lambda: saved(noise(5200), "JPEG", quality=92),
    "JPEG, 32 MB of fill bytes": lambda: b"\xff\xd8" + b"\xff" * 32_000_000 + saved(smooth(side=64), "JPEG")[2:],
    "PNG, RGBA, Paeth": lambda: png(4440, 4440),
    "PNG, RGBA, interlaced": lambda: png(4090, 4090, interlaced=True),
    "PNG, RGBA, 16 bits": lambda: png(3140, 3140, bits=16),
    "PNG, a pixel wide": lambda: png(1, 1_000_000),
    "PNG, noise of 32 MB": lambda: saved(noise(3300), "PNG"),
    "WebP": lambda: saved(smooth(side=5990), "WEBP", method=0),
    "WebP, lossless": lambda: saved(smooth(side=5280), "WEBP", lossless=True, method=0, quality=0),
    "WebP, lossless, noise of 32 MB": lambda: saved(noise(3250), "WEBP", lossless=True, method=0, quality=0),
    "WebP, alpha": lambda: saved(smooth("RGBA", 4850), "WEBP", method=0),
    "WebP, noise": lambda: saved(noise(3150), "WEBP", quality=95, method=4),
    "AVIF": lambda: saved(smooth(side=5720), "AVIF", speed=10),
    "AVIF, noise": lambda: saved(noise(3100), "AVIF", quality=90, speed=10),
    "GIF": lambda: saved(smooth("L"), "GIF"),
    "GIF, 500,000 comments of a byte": lambda: gif(b"\x21\xfe" + b"\1x" * 499_000 + b"\0"),
    "BMP": lambda: saved(smooth("L"), "BMP"),
    "BMP, run-length encoded": lambda: run_length_encoded(bytes([100, 7] * 20 + [0, 0]) * 1250),
    "BMP, run-length encoded, ends of lines": lambda: run_length_encoded(bytes([1, 7, 0, 0]) * 1250),
    "TIFF, LZW": lambda: saved(smooth(side=7500), "TIFF", compression="tiff_lzw"),
    "TIFF, deflate, RGBA": lambda: saved(smooth("RGBA", 6700), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF, JPEG": lambda: saved(smooth(side=6700), "TIFF", compression="jpeg"),
    "TIFF, group 4": lambda: saved(smooth("1", 6280), "TIFF", compression="group4"),
    "TIFF, LZMA": lambda: saved(smooth("L", 7600), "TIFF", compression="lzma"),
    "TIFF, 60,000 strips": lambda: tiff(300, 60_000, zlib.compress(bytes(300), 9)),
}


def _peak_mebibytes() -> float:
    """Of this process, since its peak was last forgotten."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _measure(data: bytes, results: Any) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    reserved = 0.0
    before, started = _peak_mebibytes(), time.process_time()
    try:
        image = open_image(data, max_pixels=MOST)
        check_work(image, most=MOST)
        reserved = (image.working_bytes + 3 * image.width * image.height) / (1 << 20)
        read_pixels(image)
        outcome = f"{image.width} x {image.height}"
    except ImageError as error:
        outcome = f"rejected: {error}"
    results.put((outcome, time.process_time() - started, _peak_mebibytes() - before, reserved))


def main() -> None:
    context = multiprocessing.get_context("spawn")
    print("| file | bytes | pixels | seconds | MiB | MiB reserved |\n|---|---|---|---|---|---|")
    for name, make in FILES.items():
        if len(sys.argv) > 1 and sys.argv[1].lower() not in name.lower():
            continue
        data = make()
        measured = []
        for _ in range(ROUNDS):
            results = context.Queue()
            process = context.Process(target=_measure, args=(data, results))
            process.start()
            measured.append(results.get())
            process.join()
        outcome, _, mebibytes, reserved = measured[0]
        seconds = min(each[1] for each in measured)
        print(
            f"| {name} | {len(data):,} | {outcome} | {seconds:.2f} | {mebibytes:,.0f} | {reserved:,.0f} |", flush=True
        )


if __name__ == "__main__":
    main()
