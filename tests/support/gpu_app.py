"""The service on a GPU, where a picture whose first pixel is `BREAKS` makes a kernel write where it may not."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from service.devices.detector import Launched
from service.devices.loading import load_detectors
from service.devices.model_detector import GPUDetector
from service.server import serve
from service.settings import Settings

BREAKS = (1, 254, 3)


@triton.jit
def _write_astray(x: tl.tensor) -> None:
    tl.store(x + (1 << 46), 1.0)


class BreakableDetector(GPUDetector):
    def launch(self, images: Sequence[torch.Tensor]) -> Launched:
        torch.cuda.current_stream(self._device).wait_stream(self._upload_stream)  # before the pixels are read
        if any(tuple(image[:, 0, 0].tolist()) == BREAKS for image in images):
            with torch.cuda.device(self.device):
                _write_astray[(1,)](torch.zeros(1, device=self.device))
        return super().launch(images)


def load(settings: Settings) -> list[Any]:
    detectors = load_detectors(settings)
    for detector in detectors:
        detector.__class__ = BreakableDetector
    return list(detectors)


if __name__ == "__main__":
    logging.basicConfig(level="INFO", stream=sys.stdout)
    settings = Settings()
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    serve(settings, listener, load=load)
    sys.exit(1)
