"""What all tests share: where real images are, if they are anywhere."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image

from service.web.protocol import MAX_HEAD_BYTES, LimitedProtocol

if not torch.cuda.is_available():
    # The kernels run in Triton's interpreter then. It is chosen when Triton is imported, which torchvision does.
    os.environ["TRITON_INTERPRET"] = "1"

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


@pytest.fixture(scope="session")
def bccd() -> Path:
    """Blood cells with boxes, as Pascal VOC; the test is skipped where they are absent."""
    return _folder("bccd")


@pytest.fixture(autouse=True)
def _no_settings_of_the_developers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("FRCNN_", "OTEL_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def _served(app: FastAPI, http: type[LimitedProtocol] = LimitedProtocol, *, ready: bool = True) -> Iterator[str]:
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        http=http,
        ws="none",
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        log_config=None,
        access_log=False,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        give_up = time.monotonic() + 120
        while not (server.started and (not ready or app.state.service.condition.status == "ok")):
            assert time.monotonic() < give_up, app.state.service.condition if ready else "not started"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)


@pytest.fixture(scope="session")
def served() -> Callable[..., AbstractContextManager[str]]:
    """`served(app)`: the address of an application behind a real server, once it is ready (`ready=False`: at once)."""
    return _served


@dataclass
class ServerProcess:
    """`tests/faulty_app.py`, running."""

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
        return [batch for batch in batches if batch != [127 * 256 + 127]]

    def memory_kib(self) -> int:
        """Resident memory."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])

    def memory_at_rest_kib(self) -> int:
        """The same, after two canaries: those return to the system what the C library has kept."""
        known = self._canaries()
        self.until(lambda: self._canaries() >= known + 2)
        return self.memory_kib()

    def _canaries(self) -> int:
        return self._ran.read_text().splitlines().count(str(127 * 256 + 127))

    def health(self) -> str:
        return str(httpx.get(f"{self.url}/healthz", timeout=10).json()["status"])

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        give_up = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < give_up, self.log.read_text()[-3000:]
            time.sleep(0.02)

    def until_ok(self) -> None:
        self.until(lambda: self.health() == "ok")


@pytest.fixture
def faulty(tmp_path: Path) -> Callable[..., AbstractContextManager[ServerProcess]]:
    """`faulty(batch_s=0.1, setting=value)`: a server process whose pictures order its faults, ready.

    With `load_s` it takes so long to load, and is not ready.
    """
    count = iter(range(10_000))

    @contextmanager
    def start(
        *, batch_s: float = 0.0, load_s: float = 0.0, slow_px: int = 0, **settings: object
    ) -> Iterator[ServerProcess]:
        number = next(count)
        log, ran = tmp_path / f"log{number}", tmp_path / f"ran{number}"
        ran.touch()
        environment = {f"FRCNN_{name.upper()}": str(value) for name, value in settings.items()}
        environment |= {"FRCNN_PORT": "0", "FAULTY_BATCH_S": str(batch_s), "FAULTY_RAN": str(ran)}
        environment |= {"FAULTY_LOAD_S": str(load_s), "FAULTY_SLOW_PX": str(slow_px)}
        with log.open("wb") as output:
            child = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("faulty_app.py"))],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | environment | {"PYTHONPATH": str(Path(__file__).parents[1])},
            )
        try:
            give_up = time.monotonic() + 120
            while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())):
                assert child.poll() is None, log.read_text()
                assert time.monotonic() < give_up
                time.sleep(0.02)
            process = ServerProcess(child, int(found[1]), log, ran)
            process.until(lambda: process.health() == ("loading" if load_s else "ok"))
            yield process
        finally:
            child.kill()
            child.wait()

    return start


def _numbered_png(number: int, fault: int = 0, size: int = 32) -> bytes:
    image = Image.new("RGB", (size, size))
    image.putpixel((0, 0), (number // 256, number % 256, fault))
    image.putpixel((1, 0), (13, 37, 42))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def numbered_png() -> Callable[..., bytes]:
    """`numbered_png(number, fault)`: a picture for `faulty`, whose answer has its number as the first coordinate."""
    return _numbered_png


# An object of an annotation: its class name and xmin, ymin, xmax, ymax.
VocObject = tuple[str, float | str, float | str, float | str, float | str]


@pytest.fixture(scope="session")
def script_environment() -> dict[str, str]:
    """For child processes: they find the packages here, and warn about nothing."""
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def make_voc(tmp_path: Path) -> Callable[..., Path]:
    """Write a Pascal VOC folder of grey pictures, 100 wide and 80 high, in which everything can be odd."""

    def make(
        objects: dict[str, Sequence[VocObject]],
        *,
        splits: dict[str, Sequence[str]] | None = None,
        stated_hw: tuple[int, int] = (80, 100),
    ) -> Path:
        folder = tmp_path / "voc"
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / name).mkdir(parents=True)
        for name, listed in objects.items():
            pixels = np.full((80, 100, 3), 128, np.uint8)
            Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg")
            (folder / "Annotations" / f"{name}.xml").write_text(_annotation(name, listed, stated_hw))
        for split, names in (splits or {"train": list(objects), "val": list(objects)}).items():
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
        return folder

    return make


def _annotation(name: str, objects: Sequence[VocObject], stated_hw: tuple[int, int]) -> str:
    boxes = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object>"
        for label, x1, y1, x2, y2 in objects
    )
    height, width = stated_hw
    return (
        f"<annotation><filename>{name}.jpg</filename><path>C:\\elsewhere\\{name}.jpg</path>"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>{boxes}</annotation>"
    )
