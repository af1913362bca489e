"""`frcnn weights list | fetch | inspect | pack`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from model.arguments import no_such_weights
from service.cli.errors import refuse, stderr
from service.cli.options import number


def list_weights() -> None:
    """What --weights takes, and what of it is here."""
    from model.weights import bundled_is_present, coco_is_cached, coco_weights

    state = "in the cache" if coco_is_cached() else "to be fetched once"
    typer.echo(f"COCO_V1   {state}: {coco_weights().url}")
    typer.echo(
        f"bundled   {'in the package' if bundled_is_present() else 'missing'}: red and white blood cells, platelets"
    )
    typer.echo("auto      COCO_V1 if it is cached or can be fetched soon, else bundled")
    typer.echo("random    untrained, for tests: what it finds means nothing")
    typer.echo("PATH      a .pth, .safetensors or .frcnn file of your own")


def fetch_weights() -> None:
    """Fetch COCO_V1 into the cache, unless it is there."""
    from model.weights import fetch_coco

    typer.echo(fetch_coco())


def inspect_weights(
    weights: Annotated[str, typer.Argument(metavar="W", help="COCO_V1, bundled, random or a file.")],
) -> None:
    """Say what a file of weights holds, and whether it fits the model."""
    from model.build import from_checkpoint, resolve_checkpoint

    checkpoint = resolve_checkpoint(weights)
    names = checkpoint.categories.objects()
    typer.echo(f"name        {checkpoint.name}")
    typer.echo(f"tensors     {len(checkpoint.state_dict)}")
    typer.echo(f"parameters  {sum(t.numel() for t in checkpoint.state_dict.values()):,}")
    typer.echo(f"classes     {len(names)}: {', '.join(list(names.values())[:8])}{', ...' if len(names) > 8 else ''}")
    typer.echo(f"norm eps    {checkpoint.info.norm_eps}")
    typer.echo(f"arguments   {checkpoint.info.model_kwargs or 'the defaults'}")
    from_checkpoint(checkpoint)
    typer.echo("fits        yes")


def pack(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A file of weights")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The packed file to write; ends in .frcnn")],
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
    """Shrink a file of weights to about a sixth, by rounding.

    Measure what it costs with: frcnn evaluate
    """
    if target.suffix != ".frcnn":
        raise typer.BadParameter("the packed file must end in .frcnn", param_hint="TARGET")
    refuse(None if source.is_file() else no_such_weights(source))
    from model.weights import read_checkpoint, save_checkpoint

    checkpoint = read_checkpoint(source)
    info = checkpoint.info
    if box_vote_thresh is not None:
        info = replace(info, model_kwargs=info.model_kwargs | {"box_vote_thresh": box_vote_thresh or None})
    with stderr.status("packing, which takes about a minute"):
        save_checkpoint(target, checkpoint.state_dict, info, packing_step=step)
    before, after = (path.stat().st_size / 1e6 for path in (source, target))
    typer.echo(f"{target}: {after:.1f} MB, from {before:.1f} MB")
