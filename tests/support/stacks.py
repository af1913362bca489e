"""Stacks of ours on a Docker engine, and callers of them."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.support.processes import ROOT

# What the machine's own settings would change in a stack, and all that a test sets.
_SETTINGS = ("FRCNN_", "LOADTEST_", "COMPOSE_", "TORCH_INDEX", "EXTRA")


def run(*command: str, **settings: str) -> str:
    """Return what a command prints; it must succeed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    done = subprocess.run(command, cwd=ROOT, env=environment | settings, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Stack:
    """A project of compose on CPUs, at ports of its own."""

    def __init__(self, name: str, *files: str, profile: str = "", **settings: str) -> None:
        files = ("docker-compose.yml", "docker/compose.cpu.yml", *files, "tests/docker/compose.test.yml")
        self._compose = ["docker", "compose", "--project-name", name]
        self._compose += [part for file in files for part in ("--file", file)]
        self._compose += ["--profile", profile] if profile else []
        self.port, self.scaled_port = _free_port(), _free_port()
        ports = {"FRCNN_PUBLISH": f"127.0.0.1:{self.port}", "FRCNN_PUBLISH_SCALED": f"127.0.0.1:{self.scaled_port}"}
        self._settings = ports | settings

    def __call__(self, *arguments: str) -> str:
        return run(*self._compose, *arguments, **self._settings)

    def container(self, service: str) -> str:
        return self("ps", "--all", "--quiet", service).strip()

    def state(self, service: str, what: str = "Status") -> str:
        return run("docker", "inspect", "--format", f"{{{{.State.{what}}}}}", self.container(service)).strip()


@contextmanager
def stack(name: str, *files: str, **settings: str) -> Iterator[Stack]:
    """Start a stack and wait until it is healthy; nothing of it stays."""
    started = Stack(f"frcnn-test-{name}", *files, **settings)
    try:
        started("up", "--detach", "--wait", "--wait-timeout", "600")
        yield started
    except BaseException:
        print(started("logs", "--no-color", "--tail", "60"))
        raise
    finally:
        started("down", "--volumes", "--timeout", "20")


class Callers:
    """Callers who ask again and again, each over a new connection, and take down how every request ended."""

    def __init__(self, url: str, picture: bytes, count: int = 4) -> None:
        self.outcomes: Counter[str] = Counter()
        self._url, self._picture = url, picture
        self._leaving = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def _ask(self) -> None:
        while not self._leaving.is_set():
            with httpx.Client(timeout=120) as client:
                try:
                    reply = client.post(f"{self._url}/detect", content=self._picture)
                    outcome = (
                        str(reply.status_code) if reply.status_code != 200 else f"{len(reply.json()['boxes'])} boxes"
                    )
                except httpx.TransportError as error:
                    outcome = type(error).__name__
            self.outcomes[outcome] += 1

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Ask no more, and wait for what was asked."""
        self._leaving.set()
        for thread in self._threads:
            thread.join()

    def until_answered(self, more: int, seconds: float = 300) -> None:
        """Wait until so many more requests have ended."""
        wanted, give_up = self.outcomes.total() + more, time.monotonic() + seconds
        while self.outcomes.total() < wanted:
            assert time.monotonic() < give_up, self.outcomes
            time.sleep(0.1)
