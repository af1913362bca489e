"""How the commands speak and end: 0 done, 1 failed, 2 wrong usage, 130 interrupted (143 by SIGTERM).

What a user can put right ends a command with a message, never with a trace. torch takes seconds to import, so what
needs it is imported late.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # click's; typer has a copy of click in it
FAILED, USAGE, INTERRUPTED = 1, 2, 130
_FEW_IMAGES = 5

stderr = Console(stderr=True, highlight=False, soft_wrap=True)
stdout = Console(highlight=False, soft_wrap=True)


class Commands(TyperGroup):
    """Ends a command that fails as expected, or is interrupted, with a message and an exit code."""

    def make_context(self, *arguments: Any, **named: Any) -> Any:
        with _messages():
            return super().make_context(*arguments, **named)

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        with _messages():
            return super().invoke(ctx)


def say(message: str) -> None:
    """Print a line of progress or of a failure to stderr."""
    stderr.print(message, markup=False)


def say_if_few(images: int, *, remedy: str = "") -> None:
    """Print that there are too few images to measure AP on, if so, and what to do."""
    if images <= _FEW_IMAGES:
        say(f"AP on so few images ({images}) is mostly chance{remedy}")


def fail(message: str, *, code: int = FAILED) -> NoReturn:
    """End the command with a message."""
    say(f"frcnn: {message}")
    sys.exit(code)


def fail_if(message: str | None) -> None:
    """End the command if there is something to complain about."""
    if message is not None:
        fail(message)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn a ValueError of settings that contradict each other, or mean nothing, into wrong usage."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@contextmanager
def _messages() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        fail("interrupted", code=INTERRUPTED)
    except Exception as error:
        if isinstance(error, _UsageError) and type(error).__name__ != "NoArgsIsHelpError":  # which prints the help
            _fail_of_usage(error)
        if not _is_expected(error):
            raise
        fail(str(error) or "there is no memory left")


def _fail_of_usage(error: Any) -> NoReturn:
    """End as typer does, with the prefix of all messages in place of its "Error:"."""
    if error.ctx is not None:
        say(f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help' for help.\n")
    fail(error.format_message(), code=USAGE)


def _is_expected(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno != errno.EPIPE  # typer ends silently where nobody reads the output
    if isinstance(error, MemoryError):
        return True
    if sys.modules.get("torch") is None:
        return False
    from model.data.samples import DataError
    from model.inference.errors import ServingFormError
    from model.training.processes import DeviceError
    from model.training.trainer import TrainingError
    from model.weights.checkpoints import WeightsError, WeightsUnavailableError
    from service.devices.gpus import DetectorError
    from service.errors import ServiceError

    expected = (
        DataError, DetectorError, DeviceError, ServingFormError, ServiceError, TrainingError, WeightsError,
        WeightsUnavailableError,
    )  # fmt: skip
    return isinstance(error, expected)
