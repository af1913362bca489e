"""Malicious and malformed requests."""

from __future__ import annotations

import gzip
import json
import os
import socket
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.support.fakes import FakeDetector
from tests.support.processes import status_kib
from tests.support.servers import serving

pytestmark = pytest.mark.anyio


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_unpacks_to(size: int) -> bytes:
    """An 8 x 8 picture whose pixels unpack to far more than they need."""
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    packed = zlib.compress(bytes(size), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def png_of(width: int, height: int) -> bytes:
    """A few bytes that claim so many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def gif_of(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + bytes(6) + b"," + struct.pack(
        "<HHHHB", 0, 0, width, height, 0
    ) + b"\x02\x02\x44\x01\0;"  # fmt: skip


def bmp_of(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 58, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


def memory_kib() -> int:
    """The most this process has had so far."""
    return status_kib(os.getpid(), "VmHWM")


@pytest.mark.parametrize(
    "data", [png_of(65_000, 65_000), png_of(2**31 - 1, 2**31 - 1), gif_of(65_535, 65_535), bmp_of(100_000, 100_000)]
)
async def test_claims_of_many_pixels_are_rejected_on_the_header(data: bytes) -> None:
    async with serving(FakeDetector()) as client:
        response = await client.post("/detect", content=data)
    assert response.status_code == 413
    assert "pixels" in response.json()["detail"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
async def test_bombs_take_no_memory() -> None:
    bomb = png_that_unpacks_to(1_000_000_000)
    zipped = gzip.compress(bytes(200_000_000))
    text = b"\x89PNG\r\n\x1a\n" + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(500_000_000))) + bomb[8:]
    async with serving(FakeDetector()) as client:
        await client.post("/detect", content=png_of(10, 10))
        before = memory_kib()
        assert (await client.post("/detect", content=bomb)).status_code == 200
        assert (await client.post("/detect", content=text)).status_code == 200  # the text is not unpacked
        answer = await client.post("/detect", content=zipped, headers={"Content-Encoding": "GZIP"})
        assert answer.status_code == 415
        assert "'gzip'" in answer.json()["detail"]
    assert memory_kib() - before < 100_000


@pytest.mark.parametrize("scheme", ["http", "https", "ftp"])
async def test_no_address_is_fetched(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        address = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/x.png"
        svg = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{address}"/></svg>'
        async with serving(FakeDetector()) as client:
            sent: list[dict[str, Any]] = [
                {"json": {"image": address}},
                {"json": {"url": address}},
                {"json": {"image": f"data:text/uri-list,{address}"}},
                {"content": address.encode()},
                {"content": svg.encode()},
                {"content": json.dumps({"image": address}).encode(), "headers": {"Content-Type": "image/png"}},
                {"files": {"file": address.encode()}},
                {"data": {"file": address}},
                {"content": b"", "headers": {"Content-Type": f'message/external-body; URL="{address}"'}},
            ]
            for request in sent:
                assert (await client.post("/detect", **request)).status_code in {400, 415}
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize("path", ["/etc/passwd", "file:///etc/passwd", "../../../../etc/passwd"])
async def test_no_file_is_opened(path: str) -> None:
    async with serving(FakeDetector()) as client:
        for request in ({"json": {"image": path}}, {"content": path.encode()}, {"files": {"file": (path, b"junk")}}):
            response = await client.post("/detect", **request)
            assert response.status_code == 400
            assert "root:" not in response.text
        assert (await client.get(f"/{path}")).status_code == 404
