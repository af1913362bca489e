"""A server whose every answer is known, in the event loop of the generator that asks it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from service.loadtest.generator import Generator
from service.loadtest.plan import Plan, Target
from service.loadtest.samples import Samples

TIMING = 'decode;dur=2.00, queue;dur=1.00, inference;dur=5.00, batch;desc="2"'
OK = (
    f"HTTP/1.1 200 OK\r\nServer-Timing: {TIMING}\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
).encode()


class Service(asyncio.Protocol):
    """Answers the n-th request it receives with `answer(n)` after `delay_s(n, now)` seconds, `now` being those
    since the test began; b"" hangs up."""

    def __init__(self, delay_s: Callable[[int, float], float], answer: Callable[[int], bytes]) -> None:
        self.delay_s, self.answer = delay_s, answer
        self.received: list[bytes] = []
        self.times: list[float] = []  # when each was
        self.responded: dict[int, float] = {}
        self.connections = 0
        self.began = 0.0

    def __call__(self) -> asyncio.Protocol:
        self.connections += 1
        return _Connection(self)


class _Connection(asyncio.Protocol):
    def __init__(self, service: Service) -> None:
        self.service = service
        self.data = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, end, body = self.data.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        service, loop = self.service, asyncio.get_running_loop()
        number = len(service.received)
        service.received.append(self.data)
        service.times.append(loop.time())
        self.data = b""
        loop.call_later(service.delay_s(number, loop.time() - service.began), self.respond, number)

    def respond(self, number: int) -> None:
        self.service.responded[number] = asyncio.get_running_loop().time()
        if answer := self.service.answer(number):
            self.transport.write(answer)
        else:
            self.transport.abort()


def measure(
    delay_s: Callable[[int, float], float] = lambda n, now: 0.0,
    answer: Callable[[int], bytes] = lambda n: OK,
    tls: ssl.SSLContext | None = None,
    **plan: Any,
) -> tuple[Samples, Service]:
    """Carry a plan out against such a server."""
    service = Service(delay_s, answer)

    async def main() -> Samples:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(service, "127.0.0.1", 0, ssl=tls)
        target = Target("127.0.0.1", server.sockets[0].getsockname()[1], "/detect", tls=tls is not None)
        settings = {"images": (b"image",), "duration_s": 1.0, "warmup_s": 0.0, **plan}
        service.began = loop.time()
        try:
            return await Generator(Plan(target=target, **settings)).run(service.began)
        finally:
            server.close()
            await asyncio.sleep(0.01)  # for closed connections to be told so

    return asyncio.run(asyncio.wait_for(main(), 60)), service
