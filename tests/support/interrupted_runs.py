"""Interrupts small training runs at random moments, resumes them, and holds them to one that was never interrupted.

`python -m tests.support.interrupted_runs FOLDER RUNS SEED`. Each run is a fork of this process, so that torch is
imported once.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from faster_coco_eval import COCOeval_faster  # noqa: F401 - before the forks

from model.data.synthetic import SyntheticData
from model.training.interruption import TrainingInterrupted
from model.training.log import LOG_NAME, JsonLog
from model.training.processes import Processes
from model.training.snapshot import LAST_NAME
from model.training.trainer import Trainer
from tests.support import tiny_run

ENDS = {signal.SIGINT: {0, 130}, signal.SIGTERM: {0, 143, -signal.SIGTERM}}


def train(folder: Path, *, resume: bool) -> None:
    torch.set_num_threads(1)
    settings = tiny_run.tiny_settings(6, evaluate_every=2, save_every=1)
    Trainer(
        model=tiny_run.tiny_detector(settings),
        categories=SyntheticData.categories,
        data=SyntheticData("train", count=8, size_hw=(96, 128)),
        validation=SyntheticData("val", count=6, size_hw=(96, 128)),
        settings=settings,
        folder=folder,
        processes=Processes(rank=0, count=1, device=torch.device("cpu")),
        listeners=[JsonLog(folder / LOG_NAME)],
    ).run(resume=resume)


def begin(folder: Path) -> int:
    """The id of a process that trains in the folder, or goes on there.

    A signal waits until Python has seen to its locks after the fork, which a program that is started does not do.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    if process := os.fork():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
        return process
    code = 0
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
        train(folder, resume=(folder / LAST_NAME).exists())
    except TrainingInterrupted as interrupted:
        code = 128 + interrupted.number
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 99
    os._exit(code)


def end_of(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def check(folder: Path, reference: Path) -> None:
    """The same state, weights and log, and no other file."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in reference.iterdir())
    for name in ("best.safetensors", LOG_NAME):
        assert (folder / name).read_bytes() == (reference / name).read_bytes(), name
    ours, theirs = (torch.load(each / LAST_NAME, weights_only=True) for each in (folder, reference))
    for part in ("model", "average"):
        assert all(torch.equal(tensor, theirs[part][key]) for key, tensor in ours[part].items()), part
    assert (ours["iteration"], ours["best_ap"]) == (theirs["iteration"], theirs["best_ap"])


def main() -> None:
    root, runs = Path(sys.argv[1]), int(sys.argv[2])
    draw = random.Random(int(sys.argv[3]))
    reference = root / "reference"
    began = time.monotonic()
    assert end_of(begin(reference)) == 0
    whole_s = time.monotonic() - began
    moments = []
    for number in range(runs):
        folder = root / str(number)
        process = begin(folder)
        time.sleep(draw.uniform(0, whole_s))
        sent = draw.choice(list(ENDS))
        os.kill(process, sent)
        code = end_of(process)
        assert code in ENDS[sent], f"run {number} ended with {code} after {sent.name}"
        assert not list(folder.glob("*.partial")), f"run {number} left a partial file"
        moments.append(code)
        assert end_of(begin(folder)) == 0
        check(folder, reference)
    stopped = sum(code != 0 for code in moments)
    print(f"{runs} runs, {stopped} stopped, {whole_s:.1f} s each")
    assert stopped >= runs / 4, "the signals came too late to stop the runs"


if __name__ == "__main__":
    main()
