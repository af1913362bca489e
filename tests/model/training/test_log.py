from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.training.log import LOG_NAME, JsonLog, cut_log

LINES = [
    b'{"iteration": 1, "loss": 0.5}',
    b'{"iteration": 2, "loss": 0.25}',
    b'{"iteration": 2, "is_best": true, "AP": 0.1}',
]


def test_an_update_is_a_line_with_its_losses_in_full(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / LOG_NAME)
    log.updated(1, {"loss_classifier": 1 / 3}, 0.02)
    log.updated(2, {"loss_classifier": float("nan")}, 0.01)
    first, second = map(json.loads, (tmp_path / LOG_NAME).read_text().splitlines())
    assert first == {"iteration": 1, "learning_rate": 0.02, "loss_classifier": 1 / 3}
    assert second["iteration"] == 2


@pytest.mark.parametrize(("iteration", "kept"), [(0, 0), (1, 1), (2, 3), (9, 3)])
def test_what_happens_again_is_forgotten(tmp_path: Path, iteration: int, kept: int) -> None:
    path = tmp_path / LOG_NAME
    path.write_bytes(b"\n".join(LINES) + b"\n")
    cut_log(path, iteration)
    assert path.read_bytes().splitlines() == LINES[:kept]
    assert [file.name for file in tmp_path.iterdir()] == [LOG_NAME]


@pytest.mark.parametrize(("iteration", "kept"), [(1, 1), (2, 2), (9, 3)])
def test_an_evaluation_that_happens_again_is_forgotten(tmp_path: Path, iteration: int, kept: int) -> None:
    path = tmp_path / LOG_NAME
    path.write_bytes(b"\n".join(LINES) + b"\n")
    cut_log(path, iteration, is_judged=False)
    assert path.read_bytes().splitlines() == LINES[:kept]


@pytest.mark.parametrize("torn", [b'{"iteration": 2, "by_class": {"a": {"ap": 1}', b"\xff}", b"[0]", b"{}"])
def test_a_torn_line_is_forgotten_wherever_it_is(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / LOG_NAME
    path.write_bytes(b"\n".join([LINES[0], torn, LINES[1], torn]))
    cut_log(path, 2)
    assert path.read_bytes() == LINES[0] + b"\n" + LINES[1] + b"\n"


def test_without_a_log_nothing_is_written(tmp_path: Path) -> None:
    cut_log(tmp_path / LOG_NAME, 5)
    assert not list(tmp_path.iterdir())
