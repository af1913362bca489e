"""What all tests share: where real images are, if they are anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

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


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
