"""The pictures of the next batches, decoded ahead, and their way to the device.

Threads decode, not processes: decoding releases Python's lock, all threads share one cache of decoded pictures, and
the small `/dev/shm` of a container sets no limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from model.data.samples import DetectionData
from model.structures import Target

BATCHES_AHEAD = 2  # while one is computed, the next is ready and the one after it is being decoded

Shard = list[tuple[Tensor, Target]]
"""What one forward pass computes: uint8 pictures `[3, H, W]` on the host and their targets."""


@contextmanager
def load_ahead(
    data: DetectionData, order: Iterable[Sequence[Sequence[int]]], *, pin: bool
) -> Iterator[Iterator[list[Shard]]]:
    """Decode the batches of `order` by threads while the batches before them are computed.

    Args:
        order: for each batch, the indices of the images of each of its shards.
        pin: put the pixels into page-locked memory, from which a GPU copies them while the host goes on.

    Yields:
        The batches, in order. What is not decoded yet is dropped at the end of the context.
    """
    pool = ThreadPoolExecutor(thread_name_prefix="load")
    try:
        yield _loaded(data, order, pool, pin)
    finally:
        pool.shutdown(cancel_futures=True)


def _loaded(
    data: DetectionData, order: Iterable[Sequence[Sequence[int]]], pool: ThreadPoolExecutor, pin: bool
) -> Iterator[list[Shard]]:
    waiting: deque[list[list[Future[tuple[Tensor, Target]]]]] = deque()
    for batch in order:
        waiting.append([[pool.submit(_load, data, index, pin) for index in shard] for shard in batch])
        if len(waiting) > BATCHES_AHEAD:
            yield _results(waiting.popleft())
    while waiting:
        yield _results(waiting.popleft())


def _results(batch: list[list[Future[tuple[Tensor, Target]]]]) -> list[Shard]:
    return [[future.result() for future in shard] for shard in batch]


def _load(data: DetectionData, index: int, pin: bool) -> tuple[Tensor, Target]:
    image, target = data[index]
    return _pinned(image) if pin else image, target


def _pinned(image: Tensor) -> Tensor:
    copy = torch.empty(image.shape, dtype=image.dtype, pin_memory=True)
    # By NumPy: torch would copy with all cores in each of the threads.
    np.copyto(copy.numpy(), image.numpy())
    return copy


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. The host does not wait for a GPU, as it would for a copy of pageable memory."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def targets_to_device(targets: Sequence[Target], device: torch.device) -> list[Target]:
    """All boxes in one copy and all labels in another, as a copy costs more than what it carries."""
    counts = [len(target["labels"]) for target in targets]
    boxes = to_device(torch.cat([target["boxes"] for target in targets]), device).split(counts)
    labels = to_device(torch.cat([target["labels"] for target in targets]), device).split(counts)
    return [Target(boxes=b, labels=n) for b, n in zip(boxes, labels, strict=True)]
