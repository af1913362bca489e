"""Batch norm of averaged weights.

The statistics that batch norm gathered under each of several weights are not those of the weights' average. So they
are measured again on training images (Izmailov et al. 2018, section 3.2). A few hundred images give steadier statistics
than a running mean over the last small batches.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from model.data.samples import DetectionData
from model.faster_rcnn import FasterRCNN
from model.structures import ImageBatch
from model.training.batches import batches


@torch.no_grad()
def measure_norm(model: FasterRCNN, data: DetectionData, *, images: int, batch_size: int, seed: int) -> None:
    """Set the means and variances of a model's live batch norm, in place, to those of images resized as in detection.

    Where all batch norm is frozen nothing happens.

    Args:
        images: how many, or all where there are fewer; rounded up to whole batches.
        batch_size: images that a variance is taken over; that of training.
        seed: decides which images.
    """
    device = next(model.parameters()).device
    sizes = [data.size_hw(index) for index in range(len(data))]
    count = math.ceil(min(images, len(data)) / batch_size)

    def inputs() -> Iterator[Tensor]:
        for batch in itertools.islice(batches(sizes, batch_size, seed), count):
            resized: ImageBatch = model.transform([data[index][0].to(device).float() / 255 for index in batch])
            yield resized.tensors

    update_bn(inputs(), model.backbone)
