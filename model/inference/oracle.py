"""torchvision's own detector, to measure ours by. Nothing that serves uses it."""

from __future__ import annotations

from typing import Any

import torch

from model.weights import Checkpoint

TORCHVISION = "torchvision"


def oracle(checkpoint: Checkpoint, device: torch.device) -> Any:
    """It, with the weights of a checkpoint and for pictures of their sizes, but its own number of proposals."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    sizes = {name: value for name, value in checkpoint.info.model_kwargs.items() if name in {"min_size", "max_size"}}
    classes = checkpoint.num_classes
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=classes, **sizes)
    model.load_state_dict(checkpoint.state_dict, strict=False)  # live batch norm has counters besides
    return model.eval().to(device)
