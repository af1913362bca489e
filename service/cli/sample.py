"""`frcnn sample`: pictures like blood smears, with their boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from service.cli.options import folder, number


def sample(
    output: Annotated[Path, folder(help="Folder to write to")] = Path("samples"),
    count: Annotated[int, number(min=1, help="How many")] = 1,
    seed: Annotated[int, number(min=0, help="Other pictures for another seed")] = 0,
    width: Annotated[int, number(min=64, max=8192, help="Of each, px")] = 640,
    height: Annotated[int, number(min=64, max=8192, help="Of each, px")] = 480,
) -> None:
    """Draw pictures like blood smears.

    They are sample_0.jpg and so on; boxes.json tells what they show.
    """
    from model.training.synthetic import SyntheticData

    data = SyntheticData("test", count=count, size_hw=(height, width), seed=seed)
    output.mkdir(parents=True, exist_ok=True)
    truth = {}
    for index in range(count):
        path = output / f"sample_{index}.jpg"
        data.picture(index).save(path, quality=92)
        target = data[index][1]
        truth[path.name] = {
            "boxes": target["boxes"].tolist(),
            "label_names": [data.categories.name(label) for label in target["labels"].tolist()],
        }
        typer.echo(path)
    (output / "boxes.json").write_text(json.dumps(truth), encoding="utf-8")
