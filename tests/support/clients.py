"""Both clients behind one face, so that each test holds for each, and answers for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx

from service.client import AsyncDetectionClient, DetectionClient, RetryPolicy

URL = "http://service.test"
FOUND = {
    "boxes": [[1, 2, 3, 4]],
    "labels": [1],
    "scores": [0.5],
    "label_names": ["person"],
    "image": {"width": 8, "height": 8},
    "model": {"name": "m", "weights": "w", "version": "0123456789ab"},
}


def rejection(status: int, **headers: str) -> httpx.Response:
    document = {"type": "urn:faster-rcnn-service:code", "detail": "words", "request_id": "id"}
    return httpx.Response(status, json=document, headers={"content-type": "application/problem+json", **headers})


class Sync:
    """`Sync(url or handler).detect(...)`: one call by a client of its own."""

    def __init__(self, service: str | Callable[[httpx.Request], httpx.Response], **settings: Any) -> None:
        settings.setdefault("retry", RetryPolicy(first_pause_s=0.001))
        self.url = service if isinstance(service, str) else URL
        self.transport = None if isinstance(service, str) else httpx.MockTransport(service)
        self.settings = settings

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with DetectionClient(self.url, transport=self.transport, **self.settings) as client:
                result = getattr(client, method)(*arguments, **options)
                return list(result) if method == "detect_many" else result

        return call


class Async(Sync):
    def __getattr__(self, method: str) -> Callable[..., Any]:
        async def call(*arguments: Any, **options: Any) -> Any:
            async with AsyncDetectionClient(self.url, transport=self.transport, **self.settings) as client:
                result = getattr(client, method)(*arguments, **options)
                return [outcome async for outcome in result] if method == "detect_many" else await result

        return lambda *arguments, **options: asyncio.run(call(*arguments, **options))


class Script:
    """Answers with each outcome in turn and keeps the requests."""

    def __init__(self, *outcomes: httpx.Response | Exception) -> None:
        self.outcomes = list(outcomes)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        # A copy: a response can be read by one client only.
        return httpx.Response(outcome.status_code, headers=outcome.headers, content=outcome.content)
