from __future__ import annotations

import gc
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.devices.staging import StagingBuffer, Uploads, page_locked

SIZE = 1 << 16
WHOLE = [(0, SIZE)]


def buffer(size: int = SIZE) -> StagingBuffer:
    return StagingBuffer(torch.empty(size, dtype=torch.uint8))


def in_buffer(pixels: np.ndarray[Any, Any], staging: StagingBuffer) -> bool:
    return np.shares_memory(pixels, staging._memory.numpy())


def test_pixels_are_in_the_buffer_as_long_as_there_is_room_and_else_pageable() -> None:
    staging = buffer(3 * 256)
    first, second, third = (staging.allocate((8, 10, 3)) for _ in range(3))  # 240 bytes each
    fourth = staging.allocate((8, 10, 3))
    assert [in_buffer(pixels, staging) for pixels in (first, second, third, fourth)] == [True, True, True, False]
    for number, pixels in enumerate((first, second, third, fourth)):
        pixels[:] = number
    assert [int(pixels.sum()) for pixels in (first, second, third, fourth)] == [0, 240, 480, 720]
    del second
    assert in_buffer(staging.allocate((1, 1, 3)), staging)
    assert not in_buffer(staging.allocate((0, 5, 3)), staging)


def test_a_picture_larger_than_the_buffer_is_pageable() -> None:
    staging = buffer(256)
    assert not in_buffer(staging.allocate((100, 100, 3)), staging)
    assert not in_buffer(buffer(0).allocate((1, 1, 3)), staging)


def test_whatever_refers_to_the_pixels_keeps_the_slot() -> None:
    staging = buffer()
    pixels = staging.allocate((10, 10, 3))
    view = torch.from_numpy(pixels).permute(2, 0, 1)[0, 2:4]
    del pixels
    gc.collect()
    assert staging.free != WHOLE
    del view
    assert staging.free == WHOLE


def test_pixels_outlive_the_buffer_that_gave_them() -> None:
    pixels = buffer().allocate((10, 10, 3))
    gc.collect()
    pixels[:] = 7
    assert int(pixels.sum()) == 2100


def test_a_slot_that_only_the_collector_can_free_is_freed() -> None:
    staging = buffer()
    ring: list[Any] = [staging.allocate((10, 10, 3))]
    ring.append(ring)
    del ring
    gc.collect()
    assert staging.free == WHOLE


@given(st.lists(st.one_of(st.integers(1, 9000), st.integers(-20, -1)), max_size=60))
def test_slots_never_overlap_and_all_space_comes_back(steps: list[int]) -> None:
    """A positive step takes so many pixels, a negative one drops one of those that are held."""
    staging, held = buffer(), []
    for number, step in enumerate(steps):
        if step > 0:
            held.append((staging.allocate((1, step, 3)), number % 251))
            held[-1][0][:] = number % 251
        elif held:
            held.pop(step % len(held))
        assert all((pixels == mark).all() for pixels, mark in held)
        free = staging.free
        assert free == sorted(free)
        assert all(end < start for (_, end), (start, _) in pairwise(free))  # those that meet are one
        used = sum(-(-pixels.size // 256) * 256 for pixels, _ in held if in_buffer(pixels, staging))
        assert used + sum(end - start for start, end in free) == SIZE
    held.clear()
    assert staging.free == WHOLE


def test_many_threads_share_it() -> None:
    staging = buffer(1 << 18)

    def work(seed: int) -> int:
        draw, held, staged = random.Random(seed), [], 0
        for step in range(400):
            pixels = staging.allocate((1, draw.randrange(1, 8000), 3))
            pixels[:] = mark = (seed * 40 + step) % 256
            staged += in_buffer(pixels, staging)
            held.append((pixels, mark))
            if len(held) > 4:
                old, expected = held.pop(draw.randrange(len(held)))
                assert (old == expected).all()
        return staged

    with ThreadPoolExecutor(8) as threads:
        staged = sum(threads.map(work, range(8)))
    assert 0 < staged < 8 * 400  # some found it full
    assert staging.free == [(0, 1 << 18)]


class FakeStream:
    """Copies at once, and says that the copies are over when the test sets it."""

    def __init__(self) -> None:
        self.copied = 0
        self.over = 0

    def copy(self, image: torch.Tensor) -> torch.Tensor:
        self.copied += 1
        return image.clone()

    def mark(self) -> FakeMark:
        return FakeMark(self, self.copied)


class FakeMark:
    def __init__(self, stream: FakeStream, at: int) -> None:
        self.stream, self.at = stream, at

    def query(self) -> bool:
        return self.stream.over >= self.at


def test_memory_is_kept_until_its_copy_is_over() -> None:
    staging, stream = buffer(), FakeStream()
    uploads = Uploads(stream.copy, stream.mark)
    for over, kept in ((0, 1), (0, 2), (1, 2), (3, 1), (4, 1)):
        stream.over = over
        pixels = staging.allocate((8, 10, 3))
        sent = uploads.send(torch.from_numpy(pixels).permute(2, 0, 1))
        assert sent.shape == (3, 8, 10)
        del pixels, sent
        assert SIZE - sum(end - start for start, end in staging.free) == 256 * kept
    stream.over = 5
    uploads.release_finished()
    assert staging.free == WHOLE


@pytest.mark.parametrize("order", [(2, 0, 1), (0, 1, 2)])
def test_a_picture_of_any_strides_arrives_as_it_is(order: tuple[int, int, int]) -> None:
    stream = FakeStream()
    image = torch.randint(0, 256, (4, 3, 5), dtype=torch.uint8).permute(order)
    assert Uploads(stream.copy, stream.mark).send(image).equal(image)


def test_without_page_locked_memory_pictures_are_pageable(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def reject(*_: Any, **options: Any) -> torch.Tensor:
        if options.get("pin_memory"):
            raise RuntimeError("CUDA error: out of memory")
        return torch.zeros(0, dtype=torch.uint8)

    monkeypatch.setattr(torch, "empty", reject)
    page_locked.cache_clear()
    staging = page_locked(SIZE)
    page_locked.cache_clear()
    assert staging.free == []
    assert staging.allocate((2, 2, 3)).shape == (2, 2, 3)
    assert "no 0 MiB of page-locked memory" in caplog.text
