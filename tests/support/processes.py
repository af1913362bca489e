"""Python in processes of its own."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]


def script_environment() -> dict[str, str]:
    """The environment of child processes: they find the packages here, the tests' own among them."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
