"""The service in a replica of Ray Serve: the same application, whose health and end are Serve's to ask for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.app import create_app
from service.lifecycle import LoadDetectors
from service.settings import Settings
from service.telemetry import logs

_ID = b"x-request-id"


class ReplicaFailingError(Exception):
    """Serve should replace this replica."""


class Replica:
    """What `ray.serve.ingress` makes a deployment of.

    Serve builds the application once, runs its lifespan, and sends it requests. The lifespan begins with loading the
    model, so a replica gets none before it can answer; it ends after the last of them has been answered.

    Args:
        settings: those that are set; the others come from the environment of this process.
        load: makes the detectors.
        decode_threads: where neither says how many.
    """

    def __init__(self, settings: Mapping[str, Any], load: LoadDetectors, *, decode_threads: int | None = None) -> None:
        self._settings = Settings(**settings)
        if self._settings.decode_threads is None:
            self._settings = self._settings.model_copy(update={"decode_threads": decode_threads})
        self._load = load
        logs.configure(self._settings)
        # As `service.server` does: Pillow's warnings of damaged metadata hold some of it.
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = create_app(self._settings, load=self._load, loaded_first=True)
        app.add_middleware(ProxysRequestId)
        self._service = app.state.service
        return app

    async def check_health(self) -> None:
        """Serve asks this every `health_check_period_s`, on the event loop that answers requests.

        Raises:
            ReplicaFailingError: no device answers.
        """
        condition = self._service.condition
        if condition.status == "failing" or self._service.fatal_error is not None:
            raise ReplicaFailingError(self._service.fatal_error or condition.detail)


class ProxysRequestId:
    """Leave the request's id to Serve's proxy, which adds the one it sent to every answer: twice were one too many."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent = {value for name, value in scope["headers"] if name == _ID}

        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                message["headers"] = [pair for pair in headers if pair[0] != _ID or pair[1] not in sent]
            await send(message)

        await self.app(scope, receive, send_without)
