"""What a part of the run measured, kept in a file from its first figure on, as its time may run out."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Record:
    """Figures by name, written after each.

    Args:
        path: JSON file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: dict[str, Any] = {}

    def keep(self, name: str, value: Any) -> None:
        self.values[name] = value
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self.values, indent=1))
        partial.replace(self._path)

    def measure(self, name: str, measure: Callable[[], Any]) -> None:
        """Keep what `measure` returns, or its error, so that the other figures are measured all the same."""
        started = time.monotonic()
        try:
            value = measure()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
            traceback.print_exc()
            value = {"error": f"{type(error).__name__}: {error}"[:300]}
        self.keep(name, value)
        print(f"{name}: {time.monotonic() - started:.1f} s, {json.dumps(value)[:400]}", flush=True)
