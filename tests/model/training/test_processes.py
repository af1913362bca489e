from __future__ import annotations

import pytest
import torch

from model.training.processes import DeviceError, find_device, joined_processes


@pytest.mark.parametrize(("name", "gpus", "found"), [
    ("auto", 0, "cpu"), ("auto", 2, "cuda:1"), ("cpu", 2, "cpu"), ("cuda", 2, "cuda:1"), ("cuda:0", 2, "cuda:0"),
])  # fmt: skip
def test_a_name_means_a_device(name: str, gpus: int, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert find_device(name, local_rank="1") == torch.device(found)


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "tpu", ""])
def test_a_device_that_is_not_there_is_told_with_those_that_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match=r"there is cpu, cuda:0\. Choose with --device"):
        find_device(name, local_rank="3")


def test_a_process_alone_agrees_with_itself() -> None:
    with joined_processes("cpu") as alone:
        assert (alone.rank, alone.count, alone.is_first) == (0, 1, True)
        assert alone.mean(torch.tensor([3.0, 5.0])).tolist() == [3, 5]
        assert alone.gather("mine") == ["mine"]
        assert (alone.any(True), alone.any(False)) == (True, False)
        alone.wait()
