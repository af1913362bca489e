"""What the tests of the training half share."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


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
