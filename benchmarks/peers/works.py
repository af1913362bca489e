"""What the servers do with their images, by the name in WORK: nothing, decode by Pillow, or detect by torchvision."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

Answer = dict[str, list[Any]]

WORK = os.environ.get("WORK", "untouched")


def work() -> Callable[[Sequence[bytes]], list[Answer]]:
    """That of WORK, ready to be done: a batch of files in, an answer for each out."""
    if WORK == "detect":
        found = detection()
        return lambda files: found([_decoded(file) for file in files])
    if WORK == "decode":
        return lambda files: [_nothing_in(_decoded(file)) for file in files]
    return lambda files: [_nothing_in(file) for file in files]


def detection() -> Callable[[Sequence[Image.Image]], list[Answer]]:
    """torchvision's detector in eager float32, with random weights, which are as fast as any."""
    import numpy as np
    import torch
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()

    @torch.inference_mode()
    def found(images: Sequence[Image.Image]) -> list[Answer]:
        pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255) for image in images]
        return [{name: values.tolist() for name, values in result.items()} for result in model(pixels)]

    return found


def _decoded(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB")


def _nothing_in(_: object) -> Answer:
    return {"boxes": [], "labels": [], "scores": []}
