"""The training commands as one typer app, as `frcnn` mounts them; `python app.py train ...` runs it."""

from __future__ import annotations

import typer

from model.commands import weights
from model.training import commands

app = typer.Typer(pretty_exceptions_enable=False)
app.command("train")(commands.train)
app.command("evaluate")(commands.evaluate_command)
app.command("sample")(commands.sample)
app.command("pack")(weights.pack)

if __name__ == "__main__":
    app()
