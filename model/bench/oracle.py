"""torchvision's own detector, and ours in a comparable form. No code that serves uses them."""

from __future__ import annotations

from typing import Any

import torch

from model.build import from_checkpoint
from model.faster_rcnn import FasterRCNN
from model.weights.checkpoints import Checkpoint

TORCHVISION = "torchvision"


def comparable(checkpoint: Checkpoint) -> FasterRCNN:
    """Our detector with torchvision's number of proposals and no votes, whatever the weights suggest."""
    own: dict[str, Any] = {"rpn_pre_nms_top_n_test": 1000, "rpn_post_nms_top_n_test": 1000, "box_vote_thresh": None}
    return from_checkpoint(checkpoint, **own).eval()


def oracle(checkpoint: Checkpoint, device: torch.device) -> Any:
    """It, with the weights of a checkpoint and for pictures of their sizes, but its own number of proposals."""
    from torchvision.models import detection

    sizes = {name: value for name, value in checkpoint.info.model_kwargs.items() if name in {"min_size", "max_size"}}
    classes = checkpoint.num_classes
    build = getattr(detection, checkpoint.architecture.name)
    model = build(weights=None, weights_backbone=None, num_classes=classes, **sizes)
    model.load_state_dict(checkpoint.state_dict, strict=False)  # live batch norm has counters besides
    return model.eval().to(device)
