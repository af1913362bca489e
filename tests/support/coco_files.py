"""Folders of images with COCO JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write(folder: Path, content: dict[str, Any], name: str = "instances.json") -> Path:
    (folder / "images").mkdir(exist_ok=True)
    for image in content.get("images", []):
        if isinstance(image.get("file_name"), str):
            Image.fromarray(np.zeros((80, 100, 3), np.uint8)).save(folder / "images" / Path(image["file_name"]).name)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def content(annotations: list[dict[str, Any]], images: int = 1) -> dict[str, Any]:
    return {
        "images": [{"id": n, "file_name": f"elsewhere/{n}.png", "height": 80, "width": 100} for n in range(images)],
        "annotations": [{"id": n, **annotation} for n, annotation in enumerate(annotations)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
