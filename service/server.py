"""The service as a process: it listens, answers, and ends as it should."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from types import FrameType

import uvicorn

from service.app import create_app
from service.devices.background import works_in_background
from service.devices.detector import Detector
from service.devices.loading import load_detectors
from service.errors import ServiceError
from service.lifecycle import LoadDetectors, Service
from service.settings import Settings
from service.threads import lower_priority
from service.web.protocol import MAX_HEAD_BYTES, LimitedProtocol

logger = logging.getLogger(__name__)

# Under attack a batch takes 0.68 s with it and 0.85 s without, at the 99th percentile (benchmarks/README.md).
_NICENESS = 10
_LONGEST_DECODE_S = 5.0  # what takes longer is stuck; the rest is for callers who have left, and no fault


class Server(uvicorn.Server):
    """Ends in steps: it announces the end, answers for `drain_delay_s`, rejects, finishes what it accepted, and exits.

    In the first step each answer closes its connection, so that later none is in use when requests are rejected.
    A second signal ends the process on the spot.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._stop_accepting_at: float | None = None  # on the monotonic clock; None before a signal
        self._frozen = False
        self._reload_asked = False
        self._reload: asyncio.Task[None] | None = None

    def reload_soon(self, *_: object) -> None:
        """Have the weights read again, as on SIGHUP. For a signal handler: `on_tick` begins the work, on the loop."""
        self._reload_asked = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note the signal. uvicorn calls this in its signal handler; the state changes in `on_tick`, on the loop."""
        if self._stop_accepting_at is not None:
            os._exit(128 + sig)
        self._stop_accepting_at = time.monotonic() + self._service.settings.drain_delay_s

    def end(self) -> None:
        """End without a signal."""
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """uvicorn calls this ten times a second."""
        done = await super().on_tick(counter)
        if not self._frozen and self._service.condition.status == "ok":
            # What is loaded stays. A collection that scans all of torch stops every answer for a fifth of a second,
            # several times a minute under load: rejections took 175 ms at the 99th percentile with it, 8 ms without.
            self._frozen = True
            gc.freeze()
        if self._reload_asked:
            self._reload_asked = False
            self._reload = asyncio.create_task(_reload(self._service), name="reload")
        if self._stop_accepting_at is None:
            return done
        self._service.start_draining()
        closing = (b"connection", b"close")
        if closing not in self.server_state.default_headers:
            self.server_state.default_headers = [*self.server_state.default_headers, closing]
        if time.monotonic() < self._stop_accepting_at:
            return done
        self._service.stop_accepting()
        return True


def yielding(load: LoadDetectors) -> LoadDetectors:
    """Make a loader that also lowers the event loop's priority, before the first request, where all run on a CPU."""

    def load_and_yield(settings: Settings) -> Sequence[Detector]:
        detectors = load(settings)
        if all(detector.device == "cpu" for detector in detectors):
            _yield_to_detection()
        return detectors

    return load_and_yield


@functools.cache
def _yield_to_detection() -> None:
    """Lower the priority of the event loop, once, and with it that of the decoding threads, which it starts later."""
    lower_priority(threading.main_thread(), _NICENESS)


async def _reload(service: Service) -> None:
    with contextlib.suppress(ServiceError):  # it is logged, and no caller waits for it
        await service.reload()


def serve(settings: Settings, listener: socket.socket, *, load: LoadDetectors = load_detectors) -> str:
    """Serve until a signal, or until the service can never answer again.

    Returns why it can not. After a signal it does not return: the process ends here, as the interpreter's own end would
    take a second or two to free torch, and wait for threads that load, decode or hang, or crash. So it is after a
    device was lost.

    Args:
        settings: the settings.
        listener: a socket that listens.
        load: makes the detectors.
    """
    application = create_app(settings, load=yielding(load), on_fatal_error=lambda: server.end())
    service: Service = application.state.service
    config = uvicorn.Config(
        application,
        http=LimitedProtocol,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        ws="none",
        lifespan="on",
        server_header=False,
        proxy_headers=False,  # the client address is never used
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=settings.shutdown_timeout_s,
    )
    server = Server(config, service)
    # Pillow warns of damaged metadata in words that hold some of it; Python would keep each for ever, and log it.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # Before uvicorn handles signals, and after: a clean end is exit code 0.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, server.reload_soon)
    server.run(sockets=[listener])
    reason = service.fatal_error
    at_work = service.busy or service.overruns(_LONGEST_DECODE_S)
    if at_work or service.lost_device:
        logger.error("ended with %s: %s", "a thread at work" if at_work else "no device", reason or "its time was over")
    elif reason is not None:
        return reason
    elif service.loading or works_in_background():
        logger.info("ended before %s", "the model was loaded" if service.loading else "another model was ready")
    logging.shutdown()
    os._exit(0 if reason is None else 1)
