"""The service in this process: behind a real server, or asked without one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from service.app import create_app
from service.devices.detector import Detector
from service.settings import Settings
from service.web.protocol import MAX_HEAD_BYTES, LimitedProtocol
from tests.support.fakes import FakeDetector


@contextmanager
def served(app: ASGIApp, http: type[LimitedProtocol] = LimitedProtocol, *, ready: bool = True) -> Iterator[str]:
    """Serve an application and give its address, once it is ready (`ready=False`: at once)."""
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        http=http,
        ws="none",
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        log_config=None,
        access_log=False,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        give_up = time.monotonic() + 300
        while not server.started or (ready and isinstance(app, FastAPI) and app.state.service.condition.status != "ok"):
            assert time.monotonic() < give_up, "not ready"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)


@contextmanager
def live(*detectors: Detector, http: type[LimitedProtocol] = LimitedProtocol, **settings: Any) -> Iterator[str]:
    """Serve detectors and give the address, once they are ready."""
    with served(create_app(Settings(**settings), load=lambda _: list(detectors)), http) as url:
        try:
            yield url
        finally:
            for detector in detectors:
                if isinstance(detector, FakeDetector):
                    detector.gate.set()


@asynccontextmanager
async def serving(*detectors: Detector, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of a service without a server, whose lifespan runs, once it is ready."""
    app = create_app(Settings(**settings), load=lambda _: list(detectors))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        while (await client.get("/readyz")).json()["status"] == "loading":
            await asyncio.sleep(0.001)
        yield client
