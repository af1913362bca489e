from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model.data.samples import DataError
from model.data.synthetic import SyntheticData
from model.training.identity import Identity, check_agreement, check_same_run, identity
from model.training.processes import Processes
from tests.support.tiny_run import tiny_settings

ALONE = Processes(rank=0, count=1, device=torch.device("cpu"))
NAMES = ("__background__", "cat")


def identity_of(images: int = 3, **changes: Any) -> Identity:
    return identity(tiny_settings(5, **changes), ALONE, SyntheticData("train", count=images, size_hw=(64, 64)), None)


def check(now: Identity, *, names: tuple[str, ...] = NAMES, allow_changes: bool = False) -> None:
    state = identity_of() | {"info": {"class_names": NAMES}}
    check_same_run(state, now, names, Path("out"), allow_changes=allow_changes)


@pytest.mark.parametrize("changes", [{}, {"save_every": 7, "evaluate_every": 2, "save_minutes": 1.0}])
def test_a_run_goes_on_as_it_was_begun(changes: dict[str, Any]) -> None:
    check(identity_of(**changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"learning_rate": 0.5}, "learning_rate 0.02 -> 0.5"), ({"accumulate": 2}, "accumulated parts 1 -> 2")],
)
def test_another_setting_is_named_and_allowed_on_request(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        check(identity_of(**changes))
    check(identity_of(**changes), allow_changes=True)


@pytest.mark.parametrize("allow_changes", [False, True])
def test_what_shapes_the_state_may_never_change(allow_changes: bool) -> None:
    with pytest.raises(DataError, match="live_norm False -> True"):
        check(identity_of(live_norm=True), allow_changes=allow_changes)
    with pytest.raises(DataError, match="the classes cat; the data have dog"):
        check(identity_of(), names=("__background__", "dog"), allow_changes=allow_changes)
    with pytest.raises(DataError, match="other training data"):
        check(identity_of(images=4), allow_changes=allow_changes)


@pytest.mark.parametrize(
    ("iteration", "other", "told"),
    [(12, None, "different iterations: 4, 12"), (4, "other settings", "different data or settings")],
)
def test_processes_agree_before_they_begin(iteration: int, other: Any, told: str) -> None:
    mine = identity_of()

    class Two(Processes):
        def gather(self, value: Any) -> list[Any]:
            return [value, (iteration, other or mine)]

    two = Two(rank=0, count=2, device=torch.device("cpu"))
    with pytest.raises(DataError, match=told):
        check_agreement(two, 4, mine, Path("out"))
    check_agreement(ALONE, 4, mine, Path("out"))
