from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from model.structures import Target
from model.training.loading import BATCHES_AHEAD, load_ahead, targets_to_device, to_device
from model.weights.categories import Categories


class Numbered:
    """Pictures whose pixels tell their index; one of them may be broken or slow."""

    categories = Categories(("__background__", "thing"))

    def __init__(self, *, broken: int | None = None, wait: threading.Event | None = None) -> None:
        self.asked: list[int] = []
        self.broken, self.wait = broken, wait

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        self.asked.append(index)
        if self.wait is not None and index > 0:
            self.wait.wait(10)
        if index == self.broken:
            raise ValueError(f"image {index} is broken")
        return torch.full((3, 4, 5), index, dtype=torch.uint8), Target(
            boxes=torch.tensor([[0.0, 0.0, index + 1.0, 1.0]]), labels=torch.tensor([index])
        )


def orders() -> Iterator[list[list[int]]]:
    """Batches of two shards of two images, without end."""
    for start in itertools.count(0, 4):
        yield [[start + 1, start], [start + 2, start + 3]]


def loader(data: Any, order: Any = None) -> Any:
    return load_ahead(data, orders() if order is None else order, pin=False)


def test_batches_come_in_order_whichever_picture_is_decoded_first() -> None:
    with loader(Numbered()) as loaded:
        found = [
            [[int(image[0, 0, 0]) for image, _ in shard] for shard in batch] for batch in itertools.islice(loaded, 20)
        ]
    assert found == list(itertools.islice(orders(), 20))


def test_a_finite_order_ends() -> None:
    with loader(Numbered(), itertools.islice(orders(), 5)) as loaded:
        assert len(list(loaded)) == 5


def test_only_a_few_batches_are_decoded_ahead() -> None:
    data = Numbered()
    with loader(data) as loaded:
        next(loaded)
    assert len(data.asked) <= 4 * (1 + BATCHES_AHEAD)


def test_a_picture_that_cannot_be_decoded_ends_its_batch() -> None:
    with loader(Numbered(broken=6)) as loaded:
        next(loaded)
        with pytest.raises(ValueError, match="image 6 is broken"):
            next(loaded)


def test_what_waits_is_dropped_at_the_end() -> None:
    release = threading.Event()
    data = Numbered(wait=release)
    order = [[[0]], [[*range(1, 1000)]]]
    threads = threading.active_count()
    with loader(data, order) as loaded:
        next(loaded)
        threading.Timer(0.2, release.set).start()
    assert len(data.asked) < 500
    deadline = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= threads


def test_targets_of_a_shard_keep_their_own_boxes() -> None:
    targets = [Target(boxes=torch.rand(count, 4), labels=torch.arange(count, dtype=torch.int64)) for count in (2, 0, 3)]
    moved = targets_to_device(targets, torch.device("cpu"))
    for before, after in zip(targets, moved, strict=True):
        assert after["boxes"].equal(before["boxes"])
        assert after["labels"].equal(before["labels"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_pictures_reach_the_gpu_as_they_were() -> None:
    device = torch.device("cuda")
    with load_ahead(Numbered(), orders(), pin=True) as loaded:  # type: ignore[arg-type]
        for batch, indices in zip(itertools.islice(loaded, 50), orders(), strict=False):
            for shard, wanted in zip(batch, indices, strict=True):
                assert all(image.is_pinned() for image, _ in shard)
                on_gpu = [to_device(image, device) for image, _ in shard]
                assert [int(image.amin()) for image in on_gpu] == [int(image.amax()) for image in on_gpu] == wanted
