"""The examples in docs/clients.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "clients.md"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of what supervision imports
def test_each_example(
    fake: Any,
    live: Any,
    make_png: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("supervision")
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for name in ("photo.jpg", "a.jpg", "b.jpg", "pictures/1.jpg"):
        (tmp_path / name).write_bytes(make_png(7))
    (tmp_path / "pictures" / "2.jpg").write_bytes(b"broken")
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    with live(fake()) as url:
        for example in examples:
            exec(compile(example.replace("http://127.0.0.1:8000", url), str(PAGE), "exec"), {})
    shown = capsys.readouterr().out
    assert len(examples) == 5
    assert "dog 0.3" not in shown  # below the first example's threshold
    assert "person 0.9 (7.0, 1.0, 11.0, 9.0)" in shown
    assert "pictures/1.jpg 2\npictures/2.jpg failed: 400 broken-image:" in shown
