"""Ranges that another process finds: which, what it says where it fails, and that it does not outlive this one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.inference.activation_ranges import roundings_of
from model.inference.errors import QuantisationError


@pytest.fixture
def graph() -> Any:
    """Two convolutions, the first of which doubles what it sees."""
    pytest.importorskip("nncf")
    ov = pytest.importorskip("openvino")
    ops = pytest.importorskip("openvino.opset8")
    image = ops.parameter([-1, 3, -1, -1], np.float32, name="image")
    one_to_one = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)

    def convolution(of: Any, times: float, name: str) -> Any:
        return ops.convolution(of, times * one_to_one, [1, 1], [0, 0], [0, 0], [1, 1], name=name)

    return ov.Model([convolution(convolution(image, 2, "first"), 1, "second")], [image], "two")


def test_ranges_are_those_of_the_images(graph: Any) -> None:
    looked: list[None] = []
    images = [np.full((1, 3, 8, 8), value, np.float32) for value in (0.25, 5.75)]
    found = roundings_of(graph, images, ignored=[], threads=1, looked=lambda: looked.append(None))
    of = {rounding.source: rounding for rounding in found}
    assert of.keys() == {"image", "first"}
    assert of["first"].targets == (("second", 0),)
    assert of["image"].high == pytest.approx(3, rel=0.02)  # the mean of both images' largest
    assert of["first"].high == pytest.approx(6, rel=0.02)
    assert len(looked) >= 2


def test_what_is_ignored_stays_as_it_is(graph: Any) -> None:
    images = [np.full((1, 3, 8, 8), 1, np.float32)]
    found = roundings_of(graph, images, ignored=["sec.*"], threads=1, looked=lambda: None)
    assert [rounding.source for rounding in found] == ["image"]


def test_a_process_that_fails_says_why(graph: Any) -> None:
    with pytest.raises(QuantisationError, match=r"int8 cannot be calibrated: its process was ended by .*[Ss]hape"):
        roundings_of(graph, [np.zeros((1, 4, 8, 8), np.float32)], ignored=[], threads=1, looked=lambda: None)


@pytest.mark.parametrize(("name", "is_removed"), [("frcnn-int8-x", True), ("a_folder_of_the_users", False)])
def test_it_ends_with_the_process_that_began_it(tmp_path: Path, name: str, is_removed: bool) -> None:
    """Which holds its standard input open, writes nothing to it, and may have been killed before it tidied up."""
    folder = tmp_path / name
    folder.mkdir()
    command = [sys.executable, "-m", "model.inference.activation_ranges", str(folder), "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(60) == (0 if is_removed else 1)
        assert child.stderr is not None
        assert child.stderr.read() == b""  # it does not even find out that there is no graph
    assert folder.exists() is not is_removed
