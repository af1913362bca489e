"""How the commands of `frcnn` end where something is wrong: with a message, never with a trace.

What a user can put right is exit code 1, a wrong flag 2. torch takes seconds to import, so what needs it is imported
late.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console


def refuse_at_once(message: str | None) -> None:
    """End the command, if there is something to tell, as `told_errors` would after torch is imported."""
    if message is not None:
        _tell(message)
        raise typer.Exit(1)


@contextmanager
def told_errors() -> Iterator[None]:
    """Expected failures end the command with a message and exit code 1."""
    from model.inference.errors import ServingFormError
    from model.training.data import DataError
    from model.training.processes import DeviceError
    from model.training.trainer import TrainingError
    from model.weights import WeightsError, WeightsUnavailableError

    expected = (
        DataError, DeviceError, ServingFormError, TrainingError, WeightsError, WeightsUnavailableError, OSError,
    )  # fmt: skip
    try:
        yield
    except expected as error:
        _tell(str(error))
        raise typer.Exit(1) from error


def _tell(message: str) -> None:
    Console(stderr=True).print(f"frcnn: {message}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def told_usage() -> Iterator[None]:
    """Settings refuse flags that contradict each other or mean nothing by a ValueError."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
