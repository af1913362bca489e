"""Which files of a folder are looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.images.files import image_files


def test_folders_are_read_to_the_bottom_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.jfif", "sub/c.png", "._b.JPG", ".hidden/d.png", "__MACOSX/._a.jpg", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    names = [file.name.as_posix() for file in image_files([tmp_path])]
    assert names == ["a.jfif", "b.JPG", "sub/c.png"]


def test_a_file_that_is_named_is_looked_at_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "._odd").touch()
    assert [file.path for file in image_files([tmp_path / "._odd"])] == [tmp_path / "._odd"]
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        image_files([tmp_path / "gone"])
