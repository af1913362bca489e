"""Ctrl-C and SIGTERM during a training run."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.data.synthetic import SyntheticData
from model.training import judge
from model.training.interruption import TrainingInterrupted
from model.training.processes import Processes
from model.training.trainer import Trainer
from tests.support import tiny_run
from tests.support.processes import script_environment


@pytest.mark.parametrize("runs", [4, pytest.param(50, marks=pytest.mark.reliability)])
def test_runs_that_are_interrupted_at_random_moments_resume_to_the_same_numbers(tmp_path: Path, runs: int) -> None:
    command = [sys.executable, "-m", "tests.support.interrupted_runs", str(tmp_path), str(runs), str(runs)]
    done = subprocess.run(command, env=script_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert f"{runs} runs" in done.stdout


def test_an_evaluation_that_is_interrupted_is_done_when_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in the middle of an evaluation: the state says that it is due, and nothing of it is kept."""
    told: list[tuple[int, bool]] = []
    missed: list[int] = []

    def miss(number: int, _: object) -> None:  # without it, a signal that the run does not note ends all tests
        missed.append(number)

    before = signal.signal(signal.SIGTERM, miss)

    class Told:
        def updated(self, *_: object) -> None: ...

        def evaluated(self, iteration: int, metrics: object, is_best: bool) -> None:
            told.append((iteration, is_best))

    def trainer() -> Trainer:
        settings = tiny_run.tiny_settings(2, evaluate_every=1)
        return Trainer(
            model=tiny_run.tiny_detector(settings),
            categories=SyntheticData.categories,
            data=SyntheticData("train", count=4, size_hw=(96, 128)),
            validation=SyntheticData("val", count=3, size_hw=(96, 128)),
            settings=settings,
            folder=tmp_path,
            processes=Processes(rank=0, count=1, device=torch.device("cpu")),
            listeners=[Told()],
        )

    seen = 0

    def detect_all(detect: object, data: object, *, advance: Callable[[], None]) -> None:
        nonlocal seen
        seen += 1
        signal.raise_signal(signal.SIGTERM)
        advance()
        raise AssertionError("it was not dropped")

    try:
        with monkeypatch.context() as patched:
            patched.setattr(judge, "detect_all", detect_all)
            with pytest.raises(TrainingInterrupted) as stopped:
                trainer().run()
    finally:
        restored = signal.signal(signal.SIGTERM, before)
    assert (seen, stopped.value.number, stopped.value.iteration) == (1, signal.SIGTERM, 1)
    assert restored is miss
    assert not missed
    assert told == []
    trainer().run(resume=True)
    assert [iteration for iteration, _ in told] == [1, 2]
