"""The service as it is by default, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class DefaultServer:
    """`frcnn serve`, running."""

    child: subprocess.Popen[bytes]
    port: int
    log: Path
    sockets_at_rest: int = 0

    @classmethod
    def ready(cls, child: subprocess.Popen[bytes], port: int, log: Path) -> DefaultServer:
        at_once = cls(child, port, log)
        return replace(at_once, sockets_at_rest=at_once.sockets())

    def memory_kib(self) -> int:
        """Resident memory."""
        return self._status_kib("VmRSS")

    def most_memory_kib(self) -> int:
        """The most resident memory since `forget_most_memory`."""
        return self._status_kib("VmHWM")

    def forget_most_memory(self) -> None:
        (self._folder / "clear_refs").write_text("5")

    def address_space(self) -> int:
        """Bytes."""
        return 1024 * self._status_kib("VmSize")

    def sockets(self) -> int:
        """Sockets that are open, those that serve no connection among them."""
        open_ = 0
        for each in (self._folder / "fd").iterdir():
            with suppress(FileNotFoundError):  # it has just been closed
                open_ += str(each.readlink()).startswith("socket:")
        return open_

    def lines(self) -> list[str]:
        """What is logged so far."""
        return self.log.read_text().splitlines()

    @property
    def _folder(self) -> Path:
        return Path(f"/proc/{self.child.pid}")

    def _status_kib(self, name: str) -> int:
        return int(re.findall(name + r":\s+(\d+) kB", (self._folder / "status").read_text())[0])


def start_as_by_default(output: int | IO[bytes], **settings: object) -> subprocess.Popen[bytes]:
    """Start it with the bundled weights and its default settings but these; what it logs goes to `output`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FRCNN_", "OTEL_"))}
    environment |= {f"FRCNN_{name.upper()}": str(value) for name, value in settings.items()}
    environment |= {"FRCNN_PORT": "0", "FRCNN_WEIGHTS": "bundled", "FRCNN_DEVICE": "cpu"}
    command = [sys.executable, "-m", "service", "serve"]
    return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)


@contextmanager
def served_as_by_default(log: Path, **settings: object) -> Iterator[DefaultServer]:
    """Start it as by default but for these settings; yield it when it is ready."""
    with log.open("wb") as output:
        child = start_as_by_default(output, **settings)
    try:
        give_up = time.monotonic() + 180
        while "ready:" not in log.read_text():
            assert child.poll() is None, log.read_text()
            assert time.monotonic() < give_up, log.read_text()
            time.sleep(0.1)
        found = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())
        assert found is not None
        yield DefaultServer.ready(child, int(found[1]), log)
    finally:
        child.kill()
        child.wait()
