"""The kernels as a GPU's machine code: the interpreter passes over what only the compiler minds, such as types."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import script_environment


@pytest.mark.parametrize("capability", ["80", "90"])
def test_every_kernel_compiles(capability: str, tmp_path: Path) -> None:
    environment = script_environment()
    environment.pop("TRITON_INTERPRET", None)
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-m", "tests.support.compile_kernels", capability]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    wide = {name: int(counts.split()[-2]) for name, _, counts in (x.partition(":") for x in done.stdout.splitlines())}
    assert list(wide) == [
        "nms overlaps",
        "nms overlaps of labels",
        "nms scan",
        "roi_align",
        "resize",
        "pyramid level",
        "bias",
        "max_pool",
    ]
    # These are bound by memory: they have to move 16 bytes a thread at a time.
    for name, at_least in {"pyramid level": 5, "bias": 3, "max_pool": 10}.items():
        assert wide[name] >= at_least, name
