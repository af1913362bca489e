"""`frcnn weights list | fetch | inspect | pack`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from model.weights.names import SUFFIXES, argument_error
from service.cli.errors import fail_if, stderr
from service.cli.options import ClassNames, Model, number
from service.settings import MODELS, words


def list_weights() -> None:
    """List what --weights takes, and what of it is here.

    Example: frcnn weights list
    """
    from model.architectures import ARCHITECTURES
    from model.weights.checkpoints import bundled_is_present, coco_is_cached, coco_weights

    for architecture in ARCHITECTURES.values():
        state = "in the cache" if coco_is_cached(architecture) else "to be fetched once"
        typer.echo(f"COCO_V1   of {architecture.name}, {state}: {coco_weights(architecture).url}")
    typer.echo(
        f"bundled   {'in the package' if bundled_is_present() else 'missing'}: red and white blood cells, platelets"
    )
    typer.echo("auto      COCO_V1 if it is cached or can be fetched soon, else bundled")
    typer.echo("random    untrained, for tests: what it finds means nothing")
    typer.echo("PATH      a .pth, .safetensors or .frcnn file of your own")


def fetch_weights(model: Model = None) -> None:
    """Fetch COCO_V1 into the cache, unless it is there.

    Example: frcnn weights fetch --model fasterrcnn_resnet50_fpn_v2
    """
    from model.architectures import ARCHITECTURES
    from model.weights.checkpoints import fetch_coco

    typer.echo(fetch_coco(ARCHITECTURES[model or MODELS[0]]))


def inspect_weights(
    weights: Annotated[str, typer.Argument(metavar="W", help="COCO_V1, bundled, random or a file.")],
    model: Model = None,
) -> None:
    """Say what a file of weights holds, and whether it fits the model.

    Example: frcnn weights inspect out/best.safetensors
    """
    from model.architectures import architecture_named
    from model.build import from_checkpoint, resolve_checkpoint

    checkpoint = resolve_checkpoint(weights, architecture_named(model))
    names = checkpoint.categories.objects()
    typer.echo(f"name        {checkpoint.name}")
    typer.echo(f"model       {checkpoint.architecture.name}")
    typer.echo(f"version     {checkpoint.version}")
    typer.echo(f"tensors     {len(checkpoint.state_dict)}")
    typer.echo(f"parameters  {sum(t.numel() for t in checkpoint.state_dict.values()):,}")
    typer.echo(f"classes     {len(names)}: {', '.join(list(names.values())[:8])}{', ...' if len(names) > 8 else ''}")
    typer.echo(f"norm eps    {checkpoint.info.norm_eps}")
    typer.echo(f"arguments   {checkpoint.info.model_kwargs or 'the defaults'}")
    from_checkpoint(checkpoint)
    typer.echo("fits        yes")


def pack(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A file of weights, COCO_V1 or bundled")],
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="To write: .frcnn is rounded; .safetensors and .pth are exact")
    ],
    class_names: ClassNames = None,
    step: Annotated[float, number(min=0.01, max=1.0, help="Rounding, in standard deviations of a channel")] = 0.125,
    box_vote_thresh: Annotated[
        float | None,
        number(
            min=0.0,
            max=1.0,
            help="A box found moves to the mean of the candidates that overlap it by this IoU; 0: none does; by "
            "default as SOURCE has it",
        ),
    ] = None,
) -> None:
    """Write weights as another file: .frcnn is a sixth of the size, by rounding. Name their classes for good.

    Measure what rounding costs with: frcnn evaluate

    Example: frcnn weights pack theirs.pth ours.frcnn --class-names cat,dog
    """
    if target.suffix not in SUFFIXES:
        raise typer.BadParameter(f"the file must end in {', '.join(SUFFIXES)}", param_hint="TARGET")
    if not target.resolve().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {target.parent}", param_hint="TARGET")
    fail_if(argument_error(weights=source))
    from model.build import resolve_checkpoint
    from model.weights.checkpoints import save_checkpoint

    checkpoint = resolve_checkpoint(source).named(words(class_names or ""))
    info = checkpoint.info
    if box_vote_thresh is not None:
        info = replace(info, model_kwargs=info.model_kwargs | {"box_vote_thresh": box_vote_thresh or None})
    with stderr.status("packing, which takes about a minute"):
        save_checkpoint(target, checkpoint.state_dict, info, packing_step=step)
    before = f", from {Path(source).stat().st_size / 1e6:.1f} MB" if Path(source).is_file() else ""
    typer.echo(f"{target}: {target.stat().st_size / 1e6:.1f} MB{before}")
