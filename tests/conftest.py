"""What all tests share: where real images are, if they are anywhere."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from service.protocol import UpgradeDecliningProtocol

_DATA = Path(__file__).parents[2] / "shared" / "data"


def _folder(name: str) -> Path:
    folder = _DATA / name
    if not folder.is_dir():
        pytest.skip(f"needs the real images in {folder}")
    return folder


@pytest.fixture(scope="session")
def coco_photos() -> list[Path]:
    """33 real photographs; the test is skipped where they are absent."""
    return sorted((_folder("coco_photos") / "images").glob("*.jpg"))


@pytest.fixture(scope="session")
def odd_images() -> list[Path]:
    """Real files of odd kinds, some of them broken; the test is skipped where they are absent."""
    return sorted(path for path in _folder("odd_images").iterdir() if path.suffix != ".md")


@pytest.fixture(autouse=True)
def _no_settings_of_the_developers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("FRCNN_", "OTEL_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def _served(app: FastAPI, *, ready: bool = True) -> Iterator[str]:
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, http=UpgradeDecliningProtocol, log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        give_up = time.monotonic() + 120
        while not (server.started and (app.state.service.condition.status == "ok" or not ready)):
            assert time.monotonic() < give_up, app.state.service.condition
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)


@pytest.fixture(scope="session")
def served() -> Callable[..., AbstractContextManager[str]]:
    """`served(app)`: the address of an application behind a real server, once it is ready (`ready=False`: at once)."""
    return _served
