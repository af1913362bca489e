"""A server in a process of its own, whose pictures order its faults."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from PIL import Image

from service.devices.canary import known_picture
from tests.support.processes import script_environment, status_kib

_RED, _GREEN = known_picture()[:2, 0, 0].tolist()
CANARY = 256 * _RED + _GREEN  # the number of the picture that devices are checked with


@dataclass
class ServerProcess:
    """`tests.support.faulty_app`, running."""

    child: subprocess.Popen[bytes]
    port: int
    log: Path
    _ran: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ran(self) -> list[list[int]]:
        """The numbers of the pictures of each batch, canaries not among them."""
        batches = [[int(number) for number in line.split()] for line in self._ran.read_text().splitlines()]
        return [batch for batch in batches if batch != [CANARY]]

    def memory_kib(self) -> int:
        """Resident memory."""
        return status_kib(self.child.pid, "VmRSS")

    def memory_at_rest_kib(self) -> int:
        """The same, after two canaries: those return to the system what the C library has kept."""
        known = self._canaries()
        self.until(lambda: self._canaries() >= known + 2)
        return self.memory_kib()

    def _canaries(self) -> int:
        return self._ran.read_text().splitlines().count(str(CANARY))

    def health(self) -> str:
        return str(httpx.get(f"{self.url}/healthz", timeout=10).json()["status"])

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        give_up = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < give_up, self.log.read_text()[-3000:]
            time.sleep(0.02)

    def until_ok(self) -> None:
        self.until(lambda: self.health() == "ok")


@contextmanager
def faulty(
    *, batch_s: float = 0.0, load_s: float = 0.0, slow_px: int = 0, build: Path | None = None, **settings: object
) -> Iterator[ServerProcess]:
    """Start a server process and wait until it is ready. With `load_s` it takes so long to load, and is not ready. With
    `build` it builds the detector of this file of weights at each load.

    What it logs is printed where the test fails.
    """
    environment = {f"FRCNN_{name.upper()}": str(value) for name, value in settings.items()}
    environment |= {"FRCNN_PORT": "0", "FAULTY_BATCH_S": str(batch_s)}
    environment |= {"FAULTY_LOAD_S": str(load_s), "FAULTY_SLOW_PX": str(slow_px)}
    environment |= {} if build is None else {"FAULTY_BUILD": str(build)}
    with tempfile.TemporaryDirectory() as folder:
        log, ran = Path(folder) / "log", Path(folder) / "ran"
        ran.touch()
        with log.open("wb") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "tests.support.faulty_app"],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=script_environment() | environment | {"FAULTY_RAN": str(ran)},
            )
        try:
            give_up = time.monotonic() + 300
            while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())):
                assert child.poll() is None, log.read_text()
                assert time.monotonic() < give_up
                time.sleep(0.02)
            process = ServerProcess(child, int(found[1]), log, ran)
            process.until(lambda: process.health() == ("loading" if load_s else "ok"))
            yield process
        except BaseException:
            print(log.read_text()[-3000:])
            raise
        finally:
            child.kill()
            child.wait()


def numbered_png(number: int, fault: int = 0, size: int = 32) -> bytes:
    """Draw a picture for `faulty`, whose answer has its number as the first coordinate."""
    image = Image.new("RGB", (size, size))
    image.putpixel((0, 0), (number // 256, number % 256, fault))
    image.putpixel((1, 0), (13, 37, 42))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
