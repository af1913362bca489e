"""Callers who mean harm, and one who does not.

    python -m tests.support.attackers PORT SECONDS ADDRESSES

prints a line when it begins, and what was sent and answered when it is over or gets SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import random
import signal
import socket
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from benchmarks.slowest_images import gif, png, run_length_encoded, smooth, tiff
from tests.support.calls import call, post

# What the service holds under attack.
MOST_BYTES = 3_000_000_000
MOST_BATCHES_WAITED = 4  # the one at work, one of each caller, and what rounding makes of it
MOST_LOG_LINES = 12
_READ_S = 90.0


def photo() -> bytes:
    """Draw what a polite caller sends."""
    picture = io.BytesIO()
    Image.linear_gradient("L").resize((640, 480)).convert("RGB").save(picture, "JPEG")
    return picture.getvalue()


def jpeg(side: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    smooth(side=side).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def webp(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()


def noise(side: int) -> bytes:
    """A small file whose picture is large as a PNG."""
    buffer = io.BytesIO()
    grains = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(grains).save(buffer, "JPEG", quality=20)
    return buffer.getvalue()


def form(files: list[bytes]) -> bytes:
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    return b"".join(part + data + b"\r\n" for data in files) + b"--x--\r\n"


def batch(files: list[bytes]) -> bytes:
    return post(form(files), "/detect/batch", Content_Type="multipart/form-data; boundary=x")


def requests() -> dict[str, bytes]:
    """What is sent and read, or not read, or left."""
    large, white = jpeg(8192), webp(5200)
    chunked = b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    strips = tiff(300, 60_000, zlib.compress(bytes(300), 9))
    return {
        "batch of WebP": batch([white] * 16),
        "batch of WebP that are too large": batch([webp(8192)] * 16),
        "batch of JPEG": batch([large] * 16),
        "large JPEG": post(large),
        "progressive JPEG": post(jpeg(6000, progressive=True)),
        "RLE bitmap": post(run_length_encoded(bytes([1, 7, 0, 0]) * 1250)),
        "TIFF of many strips": post(strips),
        "comments of a byte": post(gif(b"\x21\xfe" + b"\1x" * 499_000 + b"\0")),
        "PNG": post(png(4400, 4400)),
        "PNG of many rows": post(png(1, 1_000_000)),
        "broken JPEG": post(large[:-2000]),
        "base64": post(b'{"image": "' + b"QUFB" * 5_000_000 + b'"}', Content_Type="application/json"),
        "drawn noise": post(noise(4000), Accept="image/png"),
        "trailers": chunked + b"0\r\n" + b"T: a\r\n" * 20_000,
        "no HTTP": b"\x16\x03\x01" + bytes(300),
        "pages": b"GET /page/sample.jpg HTTP/1.1\r\nHost: x\r\n\r\n" * 99,
        "documents": b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 99,
        "scrapes": b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 99,
        "unknown paths": b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(99)),
    }


@dataclass
class Attack:
    """Sends for so long.

    Args:
        port: of the service.
        seconds: how long.
        addresses: that they have together, below 127.0.0.0/8.
        callers: at once.
    """

    port: int
    seconds: float
    addresses: int
    callers: int = 64
    sent: int = 0
    statuses: dict[int, int] = field(default_factory=dict)

    async def run(self, kinds: list[bytes]) -> None:
        """Send requests of these kinds."""
        await asyncio.gather(*(self._caller(number, kinds) for number in range(self.callers)), self._idle())

    async def _caller(self, number: int, kinds: list[bytes]) -> None:
        random_, until = random.Random(number), time.monotonic() + self.seconds
        while time.monotonic() < until:
            self.sent += 1
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                await self._send(f"127.1.0.{number % self.addresses + 1}", random_, random_.choice(kinds), until)
            await asyncio.sleep(0.05)

    async def _send(self, address: str, random_: random.Random, data: bytes, until: float) -> None:
        reader, writer = await self._connect(address)
        how = random_.choice(("read", "read", "read", "leave", "half", "mute"))
        try:
            writer.write(data[: len(data) // 2] if how == "half" else data)
            async with asyncio.timeout(min(_READ_S, max(until - time.monotonic(), 0.1))):
                if how == "leave":
                    await asyncio.sleep(random_.random() * 2)
                elif how in {"half", "mute"}:  # the receive buffer is small, and nothing is taken out of it
                    await asyncio.sleep(random_.choice((1, 5, 30)))
                else:
                    await self._read(reader)
        finally:
            writer.transport.abort()

    async def _connect(self, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        connection.bind((address, 0))
        try:
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.port))
            return await asyncio.open_connection(sock=connection, limit=8192)
        except BaseException:
            connection.close()
            raise

    async def _read(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n")
        status = int(head.split()[1])
        self.statuses[status] = self.statuses.get(status, 0) + 1
        while await reader.read(1 << 16):
            pass

    async def _idle(self) -> None:
        """Connections that send nothing, or a head without end."""
        until = time.monotonic() + self.seconds
        while time.monotonic() < until:
            open_ = []
            for number in range(200):
                with contextlib.suppress(OSError):
                    open_.append(await self._connect(f"127.2.0.{number + 1}"))
                    if number % 2:
                        open_[-1][1].write(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 30_000)
            await asyncio.sleep(min(15.0, max(until - time.monotonic(), 0)))
            for _, writer in open_:
                writer.transport.abort()


@dataclass
class Watch:
    """What a polite caller sees, what health says, and how much memory the process has, until `stop`."""

    port: int
    memory_kib: Callable[[], int]
    seconds: list[float] = field(default_factory=list)
    batches_waited: list[float] = field(default_factory=list)  # time in the queue, in times of a batch
    stage_s: dict[str, list[float]] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)  # by code
    statuses: dict[int, int] = field(default_factory=dict)
    health: dict[str, int] = field(default_factory=dict)
    health_s: float = 0.0
    most_kib: int = 0
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, picture: bytes) -> None:
        await asyncio.gather(self._ask(picture), self._probe(), self._weigh())

    async def _ask(self, picture: bytes) -> None:
        while not self.stopped.is_set():
            reply = await call(self.port, post(picture))
            self.statuses[reply.status] = self.statuses.get(reply.status, 0) + 1
            if reply.status == 200:
                self.seconds.append(reply.seconds)
                self.batches_waited.append(reply.stage_ms("queue") / reply.stage_ms("inference"))
                for stage in ("decode", "queue", "inference"):
                    self.stage_s.setdefault(stage, []).append(reply.stage_ms(stage) / 1000)
            elif reply.status:
                code = json.loads(reply.body)["type"].rpartition(":")[2]
                self.rejected[code] = self.rejected.get(code, 0) + 1
            await asyncio.sleep(0.2)

    async def _probe(self) -> None:
        request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        while not self.stopped.is_set():
            reply = await call(self.port, request)
            said = json.loads(reply.body)["status"] if reply.status else "nothing"
            self.health[said] = self.health.get(said, 0) + 1
            self.health_s = max(self.health_s, reply.seconds)
            await asyncio.sleep(0.5)

    async def _weigh(self) -> None:
        while not self.stopped.is_set():
            self.most_kib = max(self.most_kib, self.memory_kib())
            await asyncio.sleep(0.05)


async def main(port: int, seconds: float, addresses: int) -> None:
    kinds = list(requests().values())  # takes a while
    print("begins", flush=True)
    attack = Attack(port, seconds, addresses)
    running = asyncio.create_task(attack.run(kinds))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    await asyncio.wait([running])
    print(json.dumps({"sent": attack.sent, "statuses": attack.statuses}))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))
