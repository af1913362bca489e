"""A caller that is light enough not to be what is measured."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """What came back; status 0 if the connection ended before anything did."""

    status: int
    body: bytes
    seconds: float
    ended: float  # on the performance counter
    head: str = ""

    def stage_ms(self, name: str) -> float:
        """Of a stage, as `Server-Timing` tells it."""
        return float(self.head.partition(f"{name};dur=")[2].partition(",")[0])

    @property
    def number(self) -> int:
        """Of the picture that the answer is to."""
        return int(json.loads(self.body)["boxes"][0][0])


def post(body: bytes, path: str = "/detect", **headers: object) -> bytes:
    """A request's bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: test", "Connection: close", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def call(port: int, request: bytes, address: str | None = None) -> Reply:
    """Send it over a connection of its own, from an address if one is given, and read the answer to its end."""
    started = time.perf_counter()
    received = b""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0) if address else None)
    except ConnectionError:
        return Reply(0, b"", time.perf_counter() - started, time.perf_counter())
    try:
        writer.write(request)
        received = await reader.read(-1)
    except ConnectionError:
        pass
    finally:
        writer.close()
    head, _, body = received.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1]) if head else 0
    return Reply(status, body, time.perf_counter() - started, time.perf_counter(), head.decode("latin-1"))


def record(figure: str) -> None:
    """Print a measured figure, which `-rP` shows also where the test passes."""
    print(f"RECORD {figure}")
