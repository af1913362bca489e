"""What makes a run the one it was: its settings and data. Who goes on with it, or shares it, must have the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.data.samples import DataError, DetectionData
from model.training.processes import Processes
from model.training.settings import TrainSettings

# What may change when a run is resumed. `accumulate` may too, as long as the parts of a batch are as many.
_CHANGEABLE = frozenset({"iterations", "evaluate_every", "save_every", "save_minutes", "accumulate"})
# What the state of a run has the shape of, so that it never may.
_SHAPING = frozenset({"live_norm", "trainable_layers"})

Identity = dict[str, Any]


def identity(
    settings: TrainSettings, processes: Processes, data: DetectionData, validation: DetectionData | None
) -> Identity:
    """All of it, as plain values for a snapshot."""
    return {
        "settings": settings.as_dict(),
        "parts": processes.count * settings.accumulate,
        "data": data.fingerprint(),
        "validation": None if validation is None else validation.fingerprint(),
    }


def check_same_run(
    state: Mapping[str, Any], now: Identity, class_names: tuple[str, ...], folder: Path, *, allow_changes: bool
) -> None:
    """Reject a run that would go on under settings or on data that are not its own.

    Args:
        state: the run's snapshot.
        now: what it would go on with.
        class_names: of the data.
        folder: where the run lies.
        allow_changes: of all settings that its state does not have the shape of, not only of those that do no harm.

    Raises:
        DataError: with what differs.
    """
    theirs, ours = list(state["info"]["class_names"]), list(class_names)
    another = "train without --resume, into another folder"
    advice = f"Repeat the run's own, or {another}"
    if theirs != ours:
        raise DataError(
            f"the run in {folder} has the classes {', '.join(theirs[1:])}; the data have "
            f"{', '.join(ours[1:])}. {advice}"
        )
    before, after = (
        dict(same["settings"]) | {"processes times accumulated parts": same["parts"]} for same in (state, now)
    )
    changes = {
        name: f"{name} {before.get(name)} -> {after.get(name)}"
        for name in dict.fromkeys([*before, *after])
        if (name in _SHAPING if allow_changes else name not in _CHANGEABLE) and before.get(name) != after.get(name)
    }
    if changes:
        if _SHAPING.isdisjoint(changes):
            advice = f"Repeat the run's own, pass --allow-changes, or {another}"
        raise DataError(f"the run in {folder} was begun with other settings: {'; '.join(changes.values())}. {advice}")
    for name, what, options in (
        ("data", "training", "--data, --images, --split, --keep-empty and --validation-data"),
        ("validation", "validation", "--validation-data, --validation-images and --validation-split"),
    ):
        if state[name] != now[name]:
            raise DataError(f"the run in {folder} was begun with other {what} data; look at {options}. {advice}")


def check_agreement(processes: Processes, iteration: int, mine: Identity, folder: Path) -> None:
    """Processes that begin differently would wait for each other for ever, or average unlike weights.

    Raises:
        DataError: in all of them.
    """
    starts = processes.gather((iteration, mine))
    if any(theirs != starts[0][0] for theirs, _ in starts):
        iterations = ", ".join(str(theirs) for theirs, _ in starts)
        raise DataError(
            f"the processes would go on from different iterations: {iterations}, by rank. Copy {folder} of "
            "the first machine to the others, or share it between them"
        )
    if any(same != starts[0][1] for _, same in starts):
        raise DataError("the processes have different data or settings. Give all of them the same")
