"""The servers that are measured, each a process of its own: `python -m service.bench.processes KIND PORT ...`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import httpx
import numpy as np
from torch import Tensor

from service.devices.detector import Detections, Detector, ModelInfo
from service.devices.loading import load_detectors
from service.server import serve
from service.settings import MODELS, Backend, ModelName, Precision, Settings

Kind = Literal["ours", "stand-in", "plain"]
_LONGEST_START_S = 300
_END_S = 20
_NOTHING = Detections(boxes=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int64), scores=np.zeros(0, np.float32))


class ServerLostError(RuntimeError):
    """A server that was to be measured has not come up."""


class StandIn:
    """Finds nothing, and takes so long for a batch, whatever its size; pads as the real one does.

    Args:
        real: whose padding it has.
    """

    def __init__(self, real: Detector, seconds: float) -> None:
        self.info: ModelInfo = real.info
        self.device, self.precision, self.backend, self.best_batch_size = "cpu", real.precision, real.backend, 1
        self.padded_shape = real.padded_shape
        self._seconds = seconds

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        if self._seconds:
            time.sleep(self._seconds)
        return [_NOTHING] * len(images)


@contextmanager
def running(
    kind: Kind,
    *,
    model: ModelName = MODELS[0],
    device: str = "cpu",
    precision: str = "fp32",
    backend: str = "torch",
    batch_size: int = 1,
    batch_s: float = 0.0,
) -> Iterator[str]:
    """The address of such a server, which has answered.

    Raises:
        ServerLostError: it does not come up.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    arguments = [kind, model, str(port), device, precision, backend, str(batch_size), str(batch_s)]
    # Without the settings of the caller's environment.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FRCNN_", "OTEL_"))}
    child = subprocess.Popen([sys.executable, "-m", "service.bench.processes", *arguments], env=environment)  # noqa: S603
    url = f"http://127.0.0.1:{port}"
    try:
        until_ready(url, lambda: child.poll() is None)
        yield url
    finally:
        child.terminate()
        try:
            child.wait(_END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def until_ready(url: str, is_alive: Callable[[], bool] = lambda: True) -> None:
    """Wait until a server that was begun answers.

    Raises:
        ServerLostError: it does not, in time or at all.
    """
    give_up = time.monotonic() + _LONGEST_START_S
    while True:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if not is_alive() or time.monotonic() > give_up:
            raise ServerLostError("a server that was to be measured did not start; its message is above")
        time.sleep(0.1)


def _serve(
    kind: Kind,
    model: ModelName,
    port: int,
    *,
    device: str,
    precision: Precision,
    backend: Backend,
    batch_size: int,
    batch_s: float,
) -> None:
    if kind == "plain":
        import uvicorn

        from service.bench.plain_app import plain_app

        uvicorn.run(plain_app(model, device), host="127.0.0.1", port=port, log_level="warning", access_log=False)
        return
    settings = Settings(
        weights="random",
        model=model,
        device=device,
        precision=precision,
        backend=backend,
        calibrate_first=True,
        max_batch_size=batch_size,
        access_log=False,
    )

    def load(asked: Settings) -> Sequence[Detector]:
        detectors = load_detectors(asked)
        return detectors if kind == "ours" else [StandIn(detectors[0], batch_s)]

    serve(settings, socket.create_server(("127.0.0.1", port)), load=load)


if __name__ == "__main__":
    kind, model, port, device, precision, backend, batch_size, batch_s = sys.argv[1:]
    _serve(
        kind,  # type: ignore[arg-type]
        model,  # type: ignore[arg-type]
        int(port),
        device=device,
        precision=precision,  # type: ignore[arg-type]
        backend=backend,  # type: ignore[arg-type]
        batch_size=int(batch_size),
        batch_s=float(batch_s),
    )
