"""Which images train together, in which order: a pure function of the seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from model.structures import SizeHW


def batches(sizes_hw: Sequence[SizeHW], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Batches of indices without end, of images of alike aspect ratio where there are enough, so that padding is small.

    Every epoch visits each image once, in a new order. Its images that do not fill a batch of their own aspect ratio
    share one with their neighbours' at its end; the last of them are joined by the next epoch's first. So no image is
    left out, every batch is full, and none has an image twice unless it is larger than the data.

    Args:
        sizes_hw: (height, width) of each image.
    """
    bins = [aspect_bin(size_hw) for size_hw in sizes_hw]
    generator = torch.Generator().manual_seed(seed)
    rest: list[int] = []  # of the epoch before; fewer than a batch
    while True:
        order: list[int] = torch.randperm(len(bins), generator=generator, device="cpu").tolist()
        if rest:
            added = _to_fill(rest, order, bins, batch_size)
            rest = rest + added
            order = [index for index in order if index not in set(added)]
            if len(rest) < batch_size:
                continue
            yield rest
        waiting: dict[int, list[int]] = {name: [] for name in bins}
        for index in order:
            group = waiting[bins[index]]
            group.append(index)
            if len(group) == batch_size:
                yield group.copy()
                group.clear()
        left = [index for name in sorted(waiting) for index in waiting[name]]
        full = len(left) // batch_size * batch_size
        for start in range(0, full, batch_size):
            yield left[start : start + batch_size]
        rest = left[full:]


def _to_fill(rest: list[int], order: list[int], bins: list[int], batch_size: int) -> list[int]:
    """Of an epoch's order, those next in aspect ratio to the rest of the epoch before, to make up a batch."""
    others = [index for index in order if index not in rest] if len(bins) >= batch_size else order
    nearest = sorted(others, key=lambda index: abs(bins[index] - bins[rest[0]]))  # stable: else in the epoch's order
    return nearest[: batch_size - len(rest)]


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
