"""The service as it is by default, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.support.processes import status_kib

_ESTABLISHED = "01"  # as Linux counts the states of TCP


@dataclass(frozen=True)
class DefaultServer:
    """`frcnn serve`, running."""

    child: subprocess.Popen[bytes]
    port: int
    log: Path

    def memory_kib(self) -> int:
        """Resident memory."""
        return status_kib(self.child.pid, "VmRSS")

    def most_memory_kib(self) -> int:
        """The most resident memory since `forget_most_memory`."""
        return status_kib(self.child.pid, "VmHWM")

    def forget_most_memory(self) -> None:
        Path(f"/proc/{self.child.pid}/clear_refs").write_text("5")

    def address_space(self) -> int:
        """Bytes."""
        return 1024 * status_kib(self.child.pid, "VmSize")

    def connections(self) -> int:
        """Connections that are open on both sides."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(row[1].endswith(f":{self.port:04X}") and row[3] == _ESTABLISHED for row in rows)

    def lines(self) -> list[str]:
        """What is logged so far."""
        return self.log.read_text().splitlines()


def start_as_by_default(output: int | IO[bytes], **settings: object) -> subprocess.Popen[bytes]:
    """Start it with the bundled weights and the default settings except these; what it logs goes to `output`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FRCNN_", "OTEL_"))}
    environment |= {f"FRCNN_{name.upper()}": str(value) for name, value in settings.items()}
    environment |= {"FRCNN_PORT": "0", "FRCNN_WEIGHTS": "bundled", "FRCNN_DEVICE": "cpu"}
    command = [sys.executable, "-m", "service", "serve"]
    return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)


@contextmanager
def served_as_by_default(log: Path, **settings: object) -> Iterator[DefaultServer]:
    """Start it with the default settings except these; yield it when it is ready."""
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
        yield DefaultServer(child, int(found[1]), log)
    finally:
        child.kill()
        child.wait()
