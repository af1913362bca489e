"""`frcnn sample`: pictures like blood smears, with their boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.options import folder, number
from service.cli.progress import counting

if TYPE_CHECKING:
    from model.data.synthetic import SyntheticData


def sample(
    output: Annotated[Path, folder(help="Folder to write to")] = Path("samples"),
    count: Annotated[int, number(min=1, help="How many")] = 1,
    seed: Annotated[int, number(min=0, help="Other pictures for another seed")] = 0,
    width: Annotated[int, number(min=64, max=8192, help="Of each, px")] = 640,
    height: Annotated[int, number(min=64, max=8192, help="Of each, px")] = 480,
) -> None:
    """Draw pictures like blood smears, with their boxes as COCO JSON.

    They are sample_0.jpg and so on; coco.json has their boxes, so that the folder is data to train and evaluate on.

    Example: frcnn sample --count 20 && frcnn evaluate --weights bundled --data samples --split all
    """
    from model.data.synthetic import SyntheticData

    data = SyntheticData("test", count=count, size_hw=(height, width), seed=seed)
    output.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with counting("drawing", count) as advance:
        for index in range(count):
            path = output / f"sample_{index}.jpg"
            data.picture(index).save(path, quality=92)
            images.append({"id": index, "file_name": path.name, "width": width, "height": height})
            annotations += _annotations(data, index, first_id=len(annotations) + 1)
            typer.echo(path)
            advance()
    categories = [{"id": label, "name": name} for label, name in data.categories.objects().items()]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (output / "coco.json").write_text(json.dumps(document), encoding="utf-8")


def _annotations(data: SyntheticData, index: int, *, first_id: int) -> list[dict[str, Any]]:
    target = data[index][1]
    return [
        {
            "id": first_id + place,
            "image_id": index,
            "category_id": label,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
        }
        for place, ((x1, y1, x2, y2), label) in enumerate(
            zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True)
        )
    ]
