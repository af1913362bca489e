from __future__ import annotations

from pathlib import Path

import pytest

from service.devices.memory import available_memory


@pytest.mark.parametrize("limit", ["max", "3000000000"])
def test_memory_that_is_left_is_the_machines_or_the_containers(limit: str, tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       8000000 kB\nMemAvailable:    4000000 kB\n")
    for name, text in (("max", limit), ("current", "2500000000"), ("stat", "anon 1\ninactive_file 300000000\n")):
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    assert available_memory(tmp_path, meminfo) == (4_096_000_000 if limit == "max" else 800_000_000)
    assert available_memory(tmp_path / "none", tmp_path / "none") is None
