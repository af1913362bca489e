"""What pytest makes for every test: a clean environment, and the real images where there are any."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

pytest.register_assert_rewrite("tests.support")

# Its own deadline for an example, 200 ms, fails tests on a busy machine.
hypothesis.settings.register_profile("without deadline", deadline=None)
hypothesis.settings.load_profile("without deadline")

if not torch.cuda.is_available():
    # The kernels run in Triton's interpreter then. It is chosen when Triton is imported, which torchvision does.
    os.environ["TRITON_INTERPRET"] = "1"

_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed torch before a test and its own fixtures, so that their numbers do not depend on which test ran before.

    pytest-randomly seeds the other generators. A fixture that tests share draws what the first of them was seeded with.
    """
    torch.manual_seed(0)


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


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Put back the levels and handlers that a service sets, or the caplog of a later test would miss lines."""
    loggers = [logging.getLogger(name) for name in ("", "service", "model", "uvicorn", "python_multipart")]
    before = [(logger.level, logger.handlers[:]) for logger in loggers]
    yield
    logging.captureWarnings(False)
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
