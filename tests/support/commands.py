"""The commands, run as a user does."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from service.cli.app import app

# Training small enough to take a second or two.
QUICK = (
    *("--weights", "none", "--batch-size", "2", "--min-size", "64", "--max-size", "96", "--rpn-samples", "16"),
    *("--roi-samples", "16", "--proposals", "20", "--detection-proposals", "20", "--precision", "fp32"),
    *("--device", "cpu"),
)


def invoke(*words: object) -> Result:
    """Run `frcnn` with these words in this process, and give what it printed and its exit code."""
    return CliRunner().invoke(app, [str(word) for word in words])
