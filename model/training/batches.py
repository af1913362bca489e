"""Which images train together, in which order: a pure function of the seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from model.structures import SizeHW


def batches(sizes_hw: Sequence[SizeHW], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Batches of indices without end, each of images of alike aspect ratio, so that padding stays small.

    Every epoch visits each image once, in a new order. What does not fill a batch joins the next epoch's, so no image
    is left out and every batch is full.

    Args:
        sizes_hw: (height, width) of each image.
    """
    bins = [aspect_bin(size_hw) for size_hw in sizes_hw]
    waiting: dict[int, list[int]] = {name: [] for name in bins}
    generator = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(bins), generator=generator).tolist():
            group = waiting[bins[index]]
            group.append(index)
            if len(group) == batch_size:
                yield group.copy()
                group.clear()


def aspect_bin(size_hw: SizeHW) -> int:
    """Aspect ratios within a factor of about 1.4 share a bin; squares have one of their own, 0."""
    height, width = size_hw
    return round(2 * math.log2(width / height))


def shards(batch: Sequence[int], count: int) -> list[list[int]]:
    """A batch in `count` equal consecutive parts: what one process computes at a time."""
    size, rest = divmod(len(batch), count)
    if rest:
        raise ValueError(f"a batch of {len(batch)} images cannot be shared out {count} ways")
    return [list(batch[part * size : (part + 1) * size]) for part in range(count)]


def shard_seed(seed: int, iteration: int, shard: int) -> int:
    """The seed of everything random in one shard: augmentation, and the drawing of anchors and proposals.

    It depends neither on what ran before, so that a resumed run draws the same, nor on which process computes the
    shard.
    """
    # The golden ratio's bits scatter neighbours; torch takes 64-bit seeds.
    return (seed * 0x9E3779B97F4A7C15 + iteration * 0xC2B2AE3D27D4EB4F + shard * 0x165667B19E3779F9) % (1 << 63)
