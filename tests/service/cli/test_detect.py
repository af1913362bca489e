from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from service.devices import loading
from service.settings import Settings
from tests.support.commands import invoke
from tests.support.fakes import FakeDetector
from tests.support.processes import script_environment


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "load_detectors", lambda _: [FakeDetector()])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, red in (("b.png", 7), ("a.jpg", 9), ("below/c.png", 8)):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 32), (red, 0, 0)).save(path)
    (tmp_path / "in" / "notes.txt").write_text("not looked at")
    return tmp_path / "in"


@pytest.mark.usefixtures("faked")
class TestDetect:
    def test_text(self, folder: Path) -> None:
        result = invoke("detect", folder / "b.png", "--weights", "random", "--score-threshold", "0.2")
        assert result.exit_code == 0
        assert result.stdout == (
            f"{folder / 'b.png'}: 2 detections\n"
            "  person 0.90  x 7 to 11, y 1 to 9\n"
            "  dog 0.30     x 2 to 12, y 3 to 23\n"
        )

    def test_what_is_kept(self, folder: Path) -> None:
        def names(*options: str) -> list[str]:
            (document,) = json.loads(invoke("detect", folder / "b.png", "--json", *options).stdout)
            return list(document["label_names"])

        assert names() == ["person"]
        assert names("--score-threshold", "0.5,dog:0.2") == ["person", "dog"]
        assert names("--score-threshold", "0", "--iou-threshold", "0.1") == ["person", "dog"]
        assert names("--score-threshold", "0", "--iou-threshold", "0.1", "--class-agnostic") == ["person"]

    def test_tiles(self, tmp_path: Path) -> None:
        Image.new("RGB", (100, 40), (7, 0, 0)).save(tmp_path / "wide.png")
        (document,) = json.loads(invoke("detect", tmp_path / "wide.png", "--json", "--tile", "64").stdout)
        assert document["boxes"] == [[7, 1, 11, 9], [43, 1, 47, 9]]  # the whole picture gives the first again
        assert document["image"] == {"width": 100, "height": 40}
        many = invoke("detect", tmp_path / "wide.png", "--tile", "64", "--tile-overlap", "0.8", "--max-detections", "1")
        assert many.stdout.startswith(f"{tmp_path / 'wide.png'}: 1 detection\n")

    def test_more_tiles_than_are_taken_are_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FRCNN_MAX_TILES", "2")
        Image.new("RGB", (100, 40), (7, 0, 0)).save(tmp_path / "wide.png")
        result = invoke("detect", tmp_path / "wide.png", "--tile", "64")
        assert result.exit_code == 1
        assert "100 x 40 pixels would be 3 pictures in tiles of 64 px" in result.stderr

    def test_json_of_a_folder_in_order(self, folder: Path) -> None:
        result = invoke("detect", folder, "--json")
        documents = json.loads(result.stdout)
        assert [Path(d["file"]).name for d in documents] == ["a.jpg", "b.png", "c.png"]
        assert documents[1]["boxes"] == [[7, 1, 11, 9]]  # the default threshold is 0.5
        assert documents[1]["label_names"] == ["person"]
        assert documents[1]["image"] == {"width": 40, "height": 32}

    def test_drawn_copies_keep_the_tree_and_overwrite_nothing(self, folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        for _ in range(2):
            assert invoke("detect", folder, "--draw", out).exit_code == 0
        assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == [
            "a-2.jpg", "a.jpg", "b-2.png", "b.png", "below/c-2.png", "below/c.png"
        ]  # fmt: skip
        with Image.open(out / "below" / "c.png") as drawn:
            assert drawn.size == (40, 32)

    def test_a_broken_image_is_told_and_the_others_are_done(self, folder: Path) -> None:
        (folder / "a.jpg").write_bytes(b"broken")
        result = invoke("detect", folder, "--json")
        assert result.exit_code == 1
        documents = json.loads(result.stdout)
        assert "not an image" in documents[0]["error"]
        assert len(documents[1]["boxes"]) == len(documents[2]["boxes"]) == 1
        assert "1 of 3 images" in result.stderr

    def test_wrong_usage(self, folder: Path) -> None:
        assert invoke("detect").exit_code == 2
        assert invoke("detect", folder / "missing.jpg").exit_code == 2
        for wrong in ("2", "dog", "dog:high"):
            assert invoke("detect", folder, "--score-threshold", wrong).exit_code == 2
        for options in (
            ("--iou-threshold", "2"),
            ("--tile", "63"),
            ("--tile-overlap", "0.3"),
            ("--tile", "64", "--tile-overlap", "0.9"),
            ("--max-detections", "101"),
        ):
            assert invoke("detect", folder, *options).exit_code == 2
        above = invoke("detect", folder, "--iou-threshold", "0.7")
        assert above.exit_code == 1
        assert "at most 0.5" in above.stderr
        unknown = invoke("detect", folder, "--labels", "unicorn")
        assert unknown.exit_code == 1
        assert "unicorn" in unknown.stderr


def test_detecting_measures_no_speed_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(settings: Settings) -> list[FakeDetector]:
        asked.append(settings)
        return [FakeDetector()]

    monkeypatch.setattr(loading, "load_detectors", load)
    assert invoke("detect", folder).exit_code == 0
    assert (asked[0].precision, asked[0].max_batch_size) == ("fp32", 1)


def test_a_warning_has_the_prefix_of_all_messages(folder: Path) -> None:
    """In a process of its own, as the tests have set up the log of this one."""
    code = """
import logging
from service.cli.app import main
from service.devices import loading
from tests.support.fakes import FakeDetector

def load(_):
    logging.getLogger("model").warning("COCO_V1 cannot be fetched")
    return [FakeDetector()]

loading.load_detectors = load
main()
"""
    command = [sys.executable, "-c", code, "detect", str(folder / "b.png"), "--weights", "auto"]
    child = subprocess.run(command, env=script_environment(), capture_output=True, text=True, check=False)
    assert (child.returncode, child.stderr) == (0, "frcnn: COCO_V1 cannot be fetched\n")


def test_weights_that_are_missing_are_said_so(folder: Path) -> None:
    result = invoke("detect", folder, "--weights", folder / "none.pth")
    assert result.exit_code == 1
    assert "no such file of weights" in result.stderr
