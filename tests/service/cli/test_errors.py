from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from model.data.samples import DataError
from service.cli.errors import Commands, fail, fail_if, usage_errors
from service.errors import UnavailableError


def run(command: Callable[[], None]) -> Any:
    app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
    app.command("it")(command)
    app.command("other")(lambda: None)
    return CliRunner().invoke(app, ["it"])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DataError("the data are empty"), "frcnn: the data are empty"),
        (UnavailableError("no device"), "frcnn: no device"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.jpg"), "frcnn: [Errno 2] No such file: 'a.jpg'"),
    ],
)
def test_what_a_user_can_put_right_is_a_message_and_exit_code_1(error: Exception, message: str) -> None:
    def command() -> None:
        raise error

    result = run(command)
    assert (result.exit_code, result.stderr.strip(), result.stdout) == (1, message, "")


def test_a_fault_of_the_program_keeps_its_trace() -> None:
    def command() -> None:
        raise KeyError("a bug")

    result = run(command)
    assert isinstance(result.exception, KeyError)


def test_an_interruption_is_exit_code_130() -> None:
    def command() -> None:
        raise KeyboardInterrupt

    result = run(command)
    assert (result.exit_code, result.stderr.strip()) == (128 + signal.SIGINT, "frcnn: interrupted")


def test_settings_that_contradict_each_other_are_wrong_usage() -> None:
    def command() -> None:
        with usage_errors():
            raise ValueError("--a goes with --b")

    result = run(command)
    assert result.exit_code == 2
    assert "--a goes with --b" in result.stderr


def test_a_command_ends_with_the_code_that_is_asked_for() -> None:
    assert run(lambda: fail("no", code=143)).exit_code == 143
    assert run(lambda: fail_if("no such weights")).exit_code == 1
    assert run(lambda: fail_if(None)).exit_code == 0


def test_a_message_is_printed_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fail("[red]brackets[/red] and a line that is " + "very " * 30 + "long")
    assert capsys.readouterr().err == "frcnn: [red]brackets[/red] and a line that is " + "very " * 30 + "long\n"
