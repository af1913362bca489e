"""The commands, run as a user does, on a detector of full size and pictures small enough for it to be quick."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from model.build import from_checkpoint, random_checkpoint
from model.training.run import EarlierRun, RunRequest
from model.weights.checkpoints import CheckpointInfo, read_checkpoint, save_checkpoint
from service.devices.loading import load_detectors
from service.settings import Settings
from tests.support.commands import QUICK, invoke
from tests.support.processes import script_environment
from tests.support.voc import write_voc


def test_a_users_own_class_is_trained_evaluated_and_packed(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", {f"{n}": [("gear wheel", 10, 10, 60, 60)] for n in range(2)} | {"empty": []})
    output = tmp_path / "out"
    done = invoke("train", "--data", folder, "--output", output, "--iterations", 1, *QUICK)
    assert done.exit_code == 0, done.output
    assert "1 x image without boxes, left out: empty.jpg" in done.stderr
    assert "AP on so few images (3) is mostly chance" in done.stderr
    assert torch.tensor(1e-40).mul(1).item() > 0, "training left the process without subnormal numbers"
    checkpoint = read_checkpoint(output / "best.safetensors")
    assert checkpoint.categories.objects() == {1: "gear wheel"}
    assert checkpoint.info.model_kwargs["min_size"] == 64

    [served] = load_detectors(Settings(weights=str(output / "best.safetensors"), device="cpu"))
    assert served.info.categories.objects() == {1: "gear wheel"}
    found = served.detect([torch.zeros(3, 80, 100, dtype=torch.uint8)])[0]
    assert set(found.labels.tolist()) <= {1}

    words: tuple[object, ...] = ("--weights", output / "best.safetensors", "--data", folder, "--device", "cpu")
    measured = invoke("evaluate", *words, "--json", "--plot", tmp_path / "plots")
    assert measured.exit_code == 0, measured.output
    assert "AP on so few images (3) is mostly chance" in measured.stderr
    metrics = json.loads(measured.stdout)
    assert metrics["images"] == 3
    assert 0 <= metrics["AP"] <= metrics["AP50"] <= 1
    assert list(metrics["by_class"]) == ["gear wheel"]
    assert (tmp_path / "plots" / "precision_recall.png").is_file()

    again = invoke("train", "--data", folder, "--output", output, "--iterations", 1, *QUICK)
    assert again.exit_code == 1
    assert "--resume" in again.stderr

    # The state itself says what the run began with: without the length of the run, nothing is left to do.
    words = ("train", "--data", folder, "--output", output, "--resume", *QUICK)
    resumed = invoke(*words)
    assert resumed.exit_code == 0, resumed.output
    assert len((output / "log.jsonl").read_text().splitlines()) == 2
    rejected = invoke(*words, "--weights", "COCO_V1")
    assert rejected.exit_code == 1
    assert "began with the weights none, not COCO_V1" in rejected.stderr


@pytest.mark.slow
def test_votes_are_set_by_training_and_by_packing_and_stay(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", {f"{n}": [("gear", 10, 10, 60, 60)] for n in range(2)})
    words = ("train", "--data", folder, "--validation-split", "none", "--iterations", 1, *QUICK)
    done = invoke(*words, "--output", tmp_path / "first", "--box-vote-thresh", 0.8)
    assert done.exit_code == 0, done.output
    first = tmp_path / "first" / "best.safetensors"
    assert from_checkpoint(read_checkpoint(first)).roi_heads.vote_thresh == 0.8
    done = invoke(*words, "--output", tmp_path / "second", "--weights", first)
    assert done.exit_code == 0, done.output
    assert "beginning with the weights best.safetensors" in done.stderr
    assert read_checkpoint(tmp_path / "second" / "best.safetensors").info.model_kwargs["box_vote_thresh"] == 0.8
    done = invoke(*words, "--output", tmp_path / "third", "--weights", first, "--box-vote-thresh", 0)
    assert done.exit_code == 0, done.output
    assert from_checkpoint(read_checkpoint(tmp_path / "third" / "best.safetensors")).roi_heads.vote_thresh is None

    plain, packed = tmp_path / "plain.safetensors", tmp_path / "a.frcnn"
    votes = {"min_size": 64, "box_vote_thresh": 0.7}
    few = {"roi_heads.box_predictor.cls_score.weight": torch.ones(2, 4)}
    save_checkpoint(plain, few, CheckpointInfo(model_kwargs=votes))
    for options, expected in (((), 0.7), (("--box-vote-thresh", 0.8), 0.8), (("--box-vote-thresh", 0), None)):
        done = invoke("weights", "pack", plain, packed, *options)
        assert done.exit_code == 0, done.output
        assert read_checkpoint(packed).info.model_kwargs == votes | {"box_vote_thresh": expected}


@pytest.mark.parametrize(
    ("words", "exit_code", "message"),
    [
        (("train", "--data", "nowhere", "--output", "out", "--weights", "none"), 1, "no such data: nowhere"),
        (("train", "--data", "synthetic", "--output", "out", "--weights", "gone.pth"), 1, "no such file of weights"),
        (("train", "--data", "synthetic", "--output", "out", "--crop", "7"), 2, "--crop"),
        (("train", "--data", "synthetic"), 2, "--output"),
        (
            ("train", "--data", "synthetic", "--output", "out", *QUICK, "--batch-size", "3", "--accumulate", "2"),
            1,
            "multiple of 2",
        ),
        (("train", "--data", "synthetic", "--output", "out", *QUICK, "--norm", "frozen"), 2, "without weights to"),
        (
            ("train", "--data", "synthetic", "--output", "out", *QUICK, "--trainable-layers", "2"),
            2,
            "without weights to",
        ),
        (("train", "--data", "synthetic", "--output", "out", *QUICK, "--device", "foo"), 1, "device 'foo' here; there"),
        (("train", "--data", "synthetic", "--output", "out", *QUICK, "--device", "cuda:77"), 1, "there is cpu"),
        *(
            (
                ("evaluate", "--weights", "random", "--data", "synthetic", "--precision", name, "--device", "cpu"),
                1,
                f"{name} needs a GPU",
            )
            for name in ("fp16", "tf32")
        ),
        (("evaluate", "--weights", "random", "--data", "nowhere", "--device", "cpu"), 1, "no such data"),
        (("evaluate", "--weights", "gone.frcnn", "--data", "synthetic"), 1, "no such file of weights"),
        (("weights", "pack", "a.pth", "b.zip"), 2, "must end in .safetensors, .pth, .pt, .frcnn"),
    ],
)
def test_what_is_wrong_is_told_without_a_trace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    exit_code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*words)
    assert result.exit_code == exit_code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_live_norm_goes_on_from_weights_with_their_own_arguments(tmp_path: Path) -> None:
    begin = tmp_path / "begin.safetensors"
    info = CheckpointInfo(norm_eps=0.0, model_kwargs={"image_mean": [0.1, 0.2, 0.3], "max_size": 96})
    save_checkpoint(begin, random_checkpoint().state_dict, info)
    folder = write_voc(tmp_path / "voc", {f"{n}": [("gear", 10, 10, 60, 60)] for n in range(2)})
    output = tmp_path / "out"
    words = ("train", "--data", folder, "--output", output, *QUICK, "--weights", begin, "--norm", "live")
    done = invoke(*words, "--validation-split", "none", "--iterations", 1, "--learning-rate", 1e-4)
    assert done.exit_code == 0, done.output
    told = read_checkpoint(output / "best.safetensors").info
    assert told.norm_eps == 1e-5
    assert told.model_kwargs["image_mean"] == [0.1, 0.2, 0.3]

    begin.unlink()  # its state has all that it needs to go on
    resumed = invoke(*words, "--validation-split", "none", "--iterations", 2, "--learning-rate", 1e-4, "--resume")
    assert resumed.exit_code == 0, resumed.output
    rejected = invoke(*words, "--validation-split", "none", "--iterations", 3, "--resume")
    assert rejected.exit_code == 1
    assert "learning_rate 0.0001 -> 0.0025" in rejected.stderr
    others = ("--learning-rate", 1e-4, "--norm-images", 0, "--box-loss", "giou", "--class-balance", 0.5)
    rejected = invoke(*words, "--validation-split", "none", "--resume", *others)
    changed = "settings: norm_images 200 -> 0; box_loss smooth_l1 -> giou; class_balance 0.0 -> 0.5. "
    assert changed in rejected.stderr.replace("\n", " ")


def test_validation_may_be_other_data_and_is_the_same_for_every_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[RunRequest] = []
    monkeypatch.setattr("model.training.run.run_training", lambda request, *_: requests.append(request))
    folder = write_voc(tmp_path / "voc", {f"{n}": [("RBC", 10, 10, 60, 60)] for n in range(3)})
    words = ("train", "--data", "synthetic", "--output", tmp_path / "out", *QUICK)
    assert invoke(*words, "--validation-data", folder).exit_code == 0
    assert invoke(*words, "--seed", 7).exit_code == 0
    assert invoke(*words).exit_code == 0
    validations = [request.validation for request in requests]
    assert all(validation is not None for validation in validations)
    assert [len(validation) for validation in validations if validation is not None] == [3, 50, 50]
    assert len({validation.fingerprint() for validation in validations[1:] if validation is not None}) == 1
    assert len({request.data.fingerprint() for request in requests}) == 2


@pytest.mark.parametrize(("has_it", "precision"), [(True, "bf16"), (False, "fp32")])
def test_the_precision_is_one_that_the_device_computes_in_and_stays_with_the_size_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_it: bool, precision: str
) -> None:
    requests: list[RunRequest] = []
    monkeypatch.setattr("model.training.run.run_training", lambda request, *_: requests.append(request))
    monkeypatch.setattr("model.training.processes.has_bfloat16", lambda _: has_it)
    own = QUICK.index("--precision")
    words = ("train", "--data", "synthetic", "--output", tmp_path, *QUICK[:own], *QUICK[own + 2 :])
    assert invoke(*words).exit_code == 0
    kept = {"precision": "bf16", "iterations": 9, "warmup": 0, "min_size": 320, "max_size": 400}
    earlier = EarlierRun(begin=None, architecture=requests[0].architecture, settings=kept)
    monkeypatch.setattr("model.training.run.read_earlier", lambda *_: earlier)
    monkeypatch.setattr("model.training.run.check_folder", lambda *_, **__: None)
    monkeypatch.setattr("model.training.snapshot.finished_iterations", lambda _: 0)
    sizes = words.index("--min-size")
    done = invoke(*words[:sizes], *words[sizes + 4 :], "--resume")
    assert done.exit_code == 0, done.output
    assert [request.settings.precision for request in requests] == [precision, "bf16"]
    assert [request.settings.min_size for request in requests] == [64, 320]
    assert [request.settings.max_size for request in requests] == [96, 400]


def test_folders_are_looked_at_before_anything_is_fetched_or_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: object) -> None:
        raise AssertionError("it was fetched")

    monkeypatch.setattr("model.training.run.read_start", fetch)
    words = ("train", "--data", "synthetic", "--output", tmp_path, *QUICK)
    nothing = invoke(*words, "--resume")
    assert nothing.exit_code == 1
    assert "has no state to resume from" in nothing.stderr
    (tmp_path / "best.safetensors").touch()
    other = invoke(*words)
    assert other.exit_code == 1
    assert "already holds a run" in other.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_says_how_it_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    folder = write_voc(tmp_path / "voc", {f"{n}": [("gear", 10, 10, 60, 60)] for n in range(2)})
    output = tmp_path / "out"
    words = ["train", "--data", str(folder), "--output", str(output), "--iterations", "10000", *QUICK]
    command = [sys.executable, "-m", "service", *words, "--validation-split", "none", "--evaluate-every", "0"]
    training = subprocess.Popen(command, env=script_environment(), stderr=subprocess.PIPE, text=True)
    try:
        give_up = time.monotonic() + 300
        while not (output / "log.jsonl").exists():
            assert time.monotonic() < give_up
            time.sleep(0.05)
        training.send_signal(number)
        _, told = training.communicate(timeout=60)
    finally:
        training.kill()
    assert training.returncode == 128 + number
    assert "Traceback" not in told
    last = told.splitlines()[-1]
    assert re.search(r"^frcnn: interrupted at iteration \d+ of 10000. Continue: frcnn train .* --resume$", last)
    assert sorted(path.name for path in output.iterdir()) == ["last.pth", "log.jsonl"]


@pytest.mark.parametrize(
    ("saved", "told"),
    [
        (0, "interrupted before anything was saved. Run the command again"),
        (42, r"interrupted at iteration 42 of 100. Continue: frcnn .*--resume"),
    ],
)
def test_a_run_that_is_stopped_at_once_says_how_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: int, told: str
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("model.training.run.run_training", stopped)
    monkeypatch.setattr("model.training.snapshot.finished_iterations", lambda _: saved)
    result = invoke("train", "--data", "synthetic", "--output", tmp_path / "out", "--iterations", 100, *QUICK)
    assert result.exit_code == 130
    assert re.fullmatch(f"frcnn: {told}", result.stderr.splitlines()[-1])


def test_a_bug_is_not_told_as_wrong_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def buggy(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("model.training.run.run_training", buggy)
    result = invoke("train", "--data", "synthetic", "--output", tmp_path / "out", *QUICK)
    assert isinstance(result.exception, ValueError)
    rejected = invoke("train", "--data", "synthetic", "--output", tmp_path / "out", *QUICK, "--scale-jitter", "nan")
    assert rejected.exit_code == 2


def test_the_second_version_is_trained_resumed_measured_and_served(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", {f"{n}": [("gear", 10, 10, 60, 60)] for n in range(2)})
    output = tmp_path / "out"
    words = ("train", "--data", folder, "--output", output, *QUICK, "--validation-split", "none")
    done = invoke(*words, "--iterations", 1, "--model", "fasterrcnn_resnet50_fpn_v2")
    assert done.exit_code == 0, done.output
    weights = output / "best.safetensors"
    assert read_checkpoint(weights).architecture.name == "fasterrcnn_resnet50_fpn_v2"

    rejected = invoke(*words, "--resume", "--model", "fasterrcnn_resnet50_fpn")
    assert rejected.exit_code == 1
    assert "trains a fasterrcnn_resnet50_fpn_v2. Leave out --model" in rejected.stderr
    resumed = invoke(*words, "--resume", "--iterations", 2, "--allow-changes")
    assert resumed.exit_code == 0, resumed.output
    assert "resuming after iteration 1 of 2" in resumed.stderr

    measured = invoke("evaluate", "--weights", weights, "--data", folder, "--json")
    assert json.loads(measured.stdout)["model"] == "fasterrcnn_resnet50_fpn_v2"
    asked = ("--weights", weights, "--data", folder, "--model", "fasterrcnn_resnet50_fpn")
    rejected = invoke("evaluate", *asked)
    assert rejected.exit_code == 1
    assert "holds fasterrcnn_resnet50_fpn_v2, and the detector is fasterrcnn_resnet50_fpn" in rejected.stderr
    [served] = load_detectors(Settings(weights=str(weights), device="cpu"))
    assert (served.info.name, served.info.weights) == ("fasterrcnn_resnet50_fpn_v2", "best.safetensors")
