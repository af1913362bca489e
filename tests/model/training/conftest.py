"""What the tests of the training half share."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).parent
ROOT = HERE.parents[2]

# An object of an annotation: its class name and xmin, ymin, xmax, ymax.
VocObject = tuple[str, float | str, float | str, float | str, float | str]


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module beside this file: tests are no package, so it cannot be imported by name."""
    spec = importlib.util.spec_from_file_location("tiny_run", HERE / "tiny_run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_run"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def script_environment() -> dict[str, str]:
    """For child processes: they find the packages here, and warn about nothing."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


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
