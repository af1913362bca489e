"""Real images with damaged bytes: every one gets an answer that is no server's fault."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support import calls
from tests.support.calls import record
from tests.support.faulty_server import faulty

pytestmark = pytest.mark.reliability

REQUESTS = int(os.environ.get("RELIABILITY_MUTATIONS", "4000"))
AT_ONCE = 8
PARTS = 5
FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("JPEG", {"quality": 80}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("GIF", {}),
    ("BMP", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {}),
    ("AVIF", {}),
]


def originals() -> list[bytes]:
    """A picture with structure, in each format and in several modes."""
    ramp = np.linspace(0, 255, 96)
    pixels = np.stack([np.add.outer(ramp[:64], ramp) / 2, np.outer(np.sin(ramp[:64]), np.cos(ramp)) * 127 + 128,
                       np.tile(ramp, (64, 1))], axis=2)  # fmt: skip
    picture = Image.fromarray(pixels.astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for image_format, options in FORMATS:
        for mode in ("RGB", "L", "P", "CMYK"):
            buffer = io.BytesIO()
            try:
                picture.convert(mode).save(buffer, image_format, exif=exif, **options)
            except (OSError, KeyError, ValueError):
                continue  # not every format takes every mode
            files.append(buffer.getvalue())
    return files


def damaged(random_: random.Random, data: bytes) -> bytes:
    """Bytes flipped, set to extremes, cut, doubled, swapped, overwritten with another's: once or several times."""
    body = bytearray(data)
    for _ in range(random_.choice((1, 1, 2, 4, 16))):
        if not body:
            break
        # Headers are short, and where the decisions are made.
        at = random_.randrange(min(len(body), random_.choice((16, 64, 512, len(body)))))
        length = random_.randint(1, 32)
        match random_.randrange(7):
            case 0:
                body[at] ^= 1 << random_.randrange(8)
            case 1:
                body[at] = random_.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del body[at:]
            case 3:
                del body[at : at + length]
            case 4:
                body[at:at] = body[at : at + length] * random_.randint(1, 20)
            case 5:
                body[at : at + length] = random_.randbytes(length)
            case 6:
                body[at : at + 4] = random_.choice(
                    (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\xff\xff")
                )
    return bytes(body)


def request(random_: random.Random, body: bytes) -> bytes:
    """It, in one of the ways to send an image; sometimes the envelope is what is damaged."""
    match random_.randrange(6):
        case 0:
            body = b'{"image": "' + base64.b64encode(body) + b'"}'
            body = damaged(random_, body) if random_.random() < 0.2 else body
            return bytes(calls.post(body, Content_Type="application/json"))
        case 1:
            form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + body + b"\r\n--x--\r\n"
            form = damaged(random_, form) if random_.random() < 0.2 else form
            path = random_.choice(("/detect", "/detect/batch"))
            return bytes(calls.post(form, path, Content_Type="multipart/form-data; boundary=x"))
        case _:
            return bytes(calls.post(body, Content_Type=random_.choice(("image/jpeg", "application/octet-stream"))))


def test_damaged_images_never_fail_the_service() -> None:
    random_ = random.Random(20261122)  # the same damage every time
    files = originals()
    statuses: Counter[int] = Counter()

    async def send(port: int, count: int) -> None:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(data: bytes) -> None:
            async with gate:
                reply = await calls.call(port, data)
            statuses[reply.status] += 1
            assert 200 <= reply.status < 500, (reply, data)

        for start in range(0, count, 500):
            batch = [request(random_, damaged(random_, random_.choice(files))) for _ in range(min(500, count - start))]
            await asyncio.gather(*map(one, batch))

    with faulty(max_batch_size=4, canary_interval_s=2) as server:
        asyncio.run(send(server.port, min(REQUESTS, 2000)))  # until Pillow has loaded what it loads once
        before, photograph = server.memory_at_rest_kib(), asyncio.run(calls.call(server.port, calls.post(files[0])))
        rests = []
        for _ in range(PARTS):
            asyncio.run(send(server.port, REQUESTS // PARTS))
            rests.append(server.memory_at_rest_kib())
        # The lesser of two: what the C library happens to hold differs by tens of megabytes from one rest to the next.
        after, again = min(rests[-2:]), asyncio.run(calls.call(server.port, calls.post(files[0])))
        assert server.health() == "ok"
        assert "Traceback" not in server.log.read_text()
    assert photograph.status == again.status == 200
    assert photograph.body == again.body
    record(
        f"malformed: {REQUESTS} after {min(REQUESTS, 2000)} to warm up, of {len(files)} files; {dict(statuses)}; "
        f"memory {before / 1024:.0f} -> {', '.join(f'{rest / 1024:.0f}' for rest in rests)} MiB"
    )
    assert statuses[200] > 0
    assert statuses[400] > REQUESTS / 4
    assert after < before * 1.05
