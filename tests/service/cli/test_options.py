from __future__ import annotations

import inspect
from typing import Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from service.cli.options import of_setting


def run(words: list[str], *parameters: inspect.Parameter) -> tuple[Any, dict[str, Any]]:
    given: dict[str, Any] = {}

    def command(**flags: Any) -> None:
        given.update(flags)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app = typer.Typer(rich_markup_mode=None)
    app.command()(command)
    return CliRunner().invoke(app, words, env={"COLUMNS": "200"}), given


SIZE = of_setting("min_size", int, "Shorter side, px", default=800, least=1, most=2000)


def test_a_setting_that_is_not_given_is_none_so_that_its_own_default_holds() -> None:
    assert run([], SIZE)[1] == {"min_size": None}
    assert run(["--min-size", "320"], SIZE)[1] == {"min_size": 320}


@pytest.mark.parametrize("value", ["0", "2001", "x"])
def test_bounds_are_those_of_the_setting(value: str) -> None:
    result, given = run(["--min-size", value], SIZE)
    assert (result.exit_code, given) == (2, {})
    assert "--min-size" in result.output


@pytest.mark.parametrize(
    ("plain", "default", "shown"),
    [(int, 800, "800"), (float, 0.5, "0.5"), (bool, True, "yes"), (str, "a", "a"), (Literal["a", "b"], "b", "b")],
)
def test_the_help_shows_the_default_as_a_user_writes_it(plain: Any, default: object, shown: str) -> None:
    result, _ = run(["--help"], of_setting("it", plain, "What it is", default=default))
    assert f"What it is [default: {shown}]" in " ".join(result.output.split())


@pytest.mark.parametrize("default", [None, ()])
def test_no_default_is_shown_where_there_is_none(default: object) -> None:
    assert "default" not in run(["--help"], of_setting("it", str, "What it is", default=default))[0].output
