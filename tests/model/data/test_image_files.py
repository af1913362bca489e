from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from model.data.image_files import ImageIndex, files_below, is_companion, is_image


@pytest.mark.parametrize(
    ("path", "companion"),
    [("a.jpg", False), ("._a.jpg", True), ("__MACOSX/a.jpg", True), (".git/a.jpg", True), ("a/.b/c.jpg", True)],
)
def test_hidden_files_and_a_macs_are_companions(path: str, companion: bool) -> None:
    assert is_companion(PurePosixPath(path)) == companion


def test_pictures_are_known_by_their_ending_in_any_case() -> None:
    assert all(is_image(PurePosixPath(name)) for name in ("a.JPG", "b.jfif", "c.d.Tiff", "e.avif", "f.pjpeg"))
    assert not any(is_image(PurePosixPath(name)) for name in ("a.txt", "jpg", "a.jpg.xml"))


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "named").mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").touch()
    (tmp_path / "named" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "round").symlink_to(tmp_path / "named")
    assert files_below(tmp_path / "named") == [tmp_path / "named" / "link" / "a.jpg"]


def test_a_hidden_folder_that_was_named_is_read(tmp_path: Path) -> None:
    (tmp_path / ".data").mkdir()
    (tmp_path / ".data" / "a.jpg").touch()
    assert files_below(tmp_path / ".data") == [tmp_path / ".data" / "a.jpg"]


def test_where_there_is_no_telling_no_file_is_taken(tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.png").touch()
    index = ImageIndex([tmp_path])
    assert index.named(PurePosixPath("a.png")) is None
    assert index.with_stem(PurePosixPath("a.jpg")) is None
    assert index.named(PurePosixPath("two/a.png")) == tmp_path / "two" / "a.png"
    assert ImageIndex([tmp_path], preferred=["one"]).named(PurePosixPath("a.png")) == tmp_path / "one" / "a.png"


def test_case_is_told_apart_unless_it_is_asked_to_be_ignored(tmp_path: Path) -> None:
    for name in ("IMG_1.JPG", "img_2.jpg", "IMG_2.jpg"):
        (tmp_path / name).touch()
    index = ImageIndex([tmp_path])
    assert index.named(PurePosixPath("img_1.jpg")) is None
    assert index.with_stem(PurePosixPath("img_1.jpg")) is None
    assert index.named(PurePosixPath("img_1.jpg"), any_case=True) == tmp_path / "IMG_1.JPG"
    assert index.with_stem(PurePosixPath("img_1.png"), any_case=True) == tmp_path / "IMG_1.JPG"
    assert index.named(PurePosixPath("img_2.jpg")) == tmp_path / "img_2.jpg"
    assert index.named(PurePosixPath("Img_2.jpg"), any_case=True) is None  # either may be meant
