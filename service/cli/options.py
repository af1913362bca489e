"""Options that several commands have, and options made from settings."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.errors import USAGE, fail
from service.settings import ModelName

number = partial(typer.Option, metavar="N")  # typer would call it <int range>
folder = partial(typer.Option, metavar="DIR")
DATA = typer.Option(
    metavar="DATA", help="A Pascal VOC folder, a COCO JSON or the folder of one with its images, or: synthetic"
)
IMAGES = folder(help="Folder of a COCO JSON's images; by default the JSON's own, or images in it")
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Model = Annotated[
    ModelName | None,
    typer.Option(
        metavar="MODEL",
        help="fasterrcnn_resnet50_fpn (also by default) or fasterrcnn_resnet50_fpn_v2; a file says its own",
    ),
]
ClassNames = Annotated[
    str | None,
    typer.Option(
        metavar="L,L", help="Names of the classes after the background, in order; by default the weights' own"
    ),
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, or a GPU such as cuda:0.")]


def require_folder(path: Path | None) -> None:
    """End the command if a folder of images is named that is not there."""
    if path is not None and not path.is_dir():
        fail(f"there is no folder {path}", code=USAGE)


def of_setting(
    name: str,
    plain: Any,
    about: str,
    *,
    default: object = None,
    metavar: str | None = None,
    least: float | None = None,
    most: float | None = None,
) -> inspect.Parameter:
    """The option of one setting. It is None where it is not given, so that the settings' own default holds.

    Args:
        plain: type of the value: str, int, float, bool or a Literal of words.
        default: shown in the help.
    """
    shown = "" if default in (None, ()) else f" [default: {_in_words(default)}]"
    metavar = metavar or ("N" if plain in (int, float) else None)
    bounds: dict[str, Any] = {"min": least, "max": most} if plain in (int, float) else {}
    option = typer.Option(metavar=metavar, help=f"{about}{shown}", show_default=False, **bounds)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[plain | None, option]
    )


def _in_words(default: object) -> str:
    """As a user would write it on the command line."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"{default:g}" if isinstance(default, float) else str(default)
